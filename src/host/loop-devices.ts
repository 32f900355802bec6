import * as fs from 'node:fs';
import { readIfExists } from './durable.js';

const BLOCK_DEVICES = '/sys/block';

/**
 * Loop devices whose image lies below `directory`, as `/dev/loop0`. No process has such an image open: the kernel itself does,
 * so nothing in /proc tells who keeps a file system busy. Paths are those at the time of losetup.
 */
export function loopDevicesBelow(directory: string): string[] {
  const names = fs.existsSync(BLOCK_DEVICES) ? fs.readdirSync(BLOCK_DEVICES) : [];
  return names
    .filter((name) => {
      // See Documentation/ABI/testing/sysfs-block-loop: only a device that is in use has this file.
      const image = name.startsWith('loop')
        ? readIfExists(`${BLOCK_DEVICES}/${name}/loop/backing_file`)
        : undefined;
      return image?.startsWith(`${directory}/`) === true;
    })
    .sort()
    .map((name) => `/dev/${name}`);
}
