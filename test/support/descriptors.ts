import * as fs from 'node:fs';

const DIRECTORY = '/proc/self/fd';

/** Whether this process has a descriptor of that file. */
export function isOpen(file: string): boolean {
  return fs.readdirSync(DIRECTORY).some((fd) => {
    try {
      return fs.readlinkSync(`${DIRECTORY}/${fd}`) === file;
    } catch {
      // Closed meanwhile, as the one of the listing is.
      return false;
    }
  });
}

/** How many descriptors this process has. */
export function openDescriptors(): number {
  return fs.readdirSync(DIRECTORY).length;
}
