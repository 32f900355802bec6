import type { ProcessIdentity } from '../host/process-identity.js';
import { findProcesses } from '../host/process-list.js';

/** The QEMU process that runs a domain on this host, found by the UUID that libvirt gives it as an argument. */
export function findQemu(uuid: string): ProcessIdentity | undefined {
  return findProcesses((argv) => argv[argv.indexOf('-uuid') + 1] === uuid && argv.includes('-uuid'))[0];
}
