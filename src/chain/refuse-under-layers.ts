import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed, orNone } from '../errors.js';
import type { StateDirectory } from '../session/state-directory.js';
import { identityOf, isSameImage } from '../snapshot/image-identity.js';
import { liveChainsDirectory, readLiveChain } from './live-chain.js';

/**
 * Throws if an image that is to be overwritten or replaced is one of those that a chain of ours put a VM onto, or the one below: that is
 * only a part of the disk, also while the VM is off and has nothing open. As far as we may read the state directory.
 */
export function refuseUnderLayers(file: string, state: StateDirectory): void {
  const [image] = orNone(() => [identityOf(file)]);
  if (image === undefined) return;
  const directory = liveChainsDirectory(state);
  for (const entry of orNone(() => fs.readdirSync(directory))) {
    const disks = orNone(() => readLiveChain(path.join(directory, entry))?.disks ?? []);
    const parts = disks.flatMap(({ base, layers }) => [base, ...layers]);
    if (!parts.some(({ identity }) => isSameImage(identity, image))) continue;
    const name = path.basename(entry, '.json');
    throw failed(`${file} is only a part of a disk of ${name}: chunkmount chain put the VM onto layers`, {
      hint: `merge them first: chunkmount chain --consolidate-only --vm=${name}`,
    });
  }
}
