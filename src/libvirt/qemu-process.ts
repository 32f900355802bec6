import * as path from 'node:path';
import { failed } from '../errors.js';
import { readIfExists } from '../host/durable.js';
import type { ProcessIdentity } from '../host/process-identity.js';
import { findProcesses, userOf } from '../host/process-list.js';
import type { Domain } from './domain.js';
import { usualQemuUser } from './qemu-user.js';

/** Where libvirtd keeps the process numbers of its QEMUs: root alone writes there. */
const PID_DIRECTORY = '/run/libvirt/qemu';

/** Those that may run the QEMU of a domain. Nobody else's process is taken for it, whatever it calls itself. */
function usersOf({ qemuUser = usualQemuUser() }: Pick<Domain, 'qemuUser'>): ReadonlySet<number | undefined> {
  const users = new Set<number | undefined>([0, process.geteuid!(), qemuUser]);
  users.delete(undefined);
  return users;
}

/**
 * The QEMU process that runs a domain on this host, found by the UUID that libvirt gives it as an argument. As others can have such an
 * argument, too, it must be root's, ours or of the user that libvirt names; if that leaves several, libvirt's own note tells which one it
 * is. Throws if there is none.
 */
export function findQemu(
  domain: Pick<Domain, 'name' | 'uuid' | 'qemuUser'>,
  pidDirectory = PID_DIRECTORY,
): ProcessIdentity | undefined {
  const users = usersOf(domain);
  const named = (argv: readonly string[]) =>
    argv.includes('-uuid') && argv[argv.indexOf('-uuid') + 1] === domain.uuid;
  const found = findProcesses(named).filter(({ pid }) => users.has(userOf(pid)));
  if (found.length <= 1) return found[0];
  const noted = Number(readIfExists(path.join(pidDirectory, `${domain.name}.pid`)));
  const qemu = found.find(({ pid }) => pid === noted);
  if (qemu !== undefined) return qemu;
  const pids = found.map(({ pid }) => pid).join(', ');
  throw failed(`which process is the QEMU of ${domain.name} cannot be told: ${pids} all have its UUID`, {
    hint: `end those that are not: ps -o pid,user,args ${found.map(({ pid }) => pid).join(' ')}`,
  });
}
