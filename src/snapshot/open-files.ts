import * as fs from 'node:fs';
import { systemCode } from '../errors.js';
import type { ProcessIdentity } from '../host/process-identity.js';
import { type ImageIdentity, identityOf, isSameImage } from './image-identity.js';

/** Whether a process has that file open. Throws when its descriptors cannot be read; false when it is gone. */
export function holdsOpen(owner: ProcessIdentity, file: ImageIdentity): boolean {
  const directory = `/proc/${owner.pid}/fd`;
  let descriptors: string[];
  try {
    descriptors = fs.readdirSync(directory);
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return false;
    throw error;
  }
  return descriptors.some((descriptor) => {
    const open = identityOf(`${directory}/${descriptor}`);
    return open !== undefined && isSameImage(open, file);
  });
}
