import { readIfExists } from '../host/durable.js';

/** The user that the distributions' libvirt runs QEMU as: Debian, then Fedora and openSUSE. */
const QEMU_USERS = ['libvirt-qemu', 'qemu'];

/** A line of passwd(5). */
interface User {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

function users(): User[] {
  const lines = (readIfExists('/etc/passwd') ?? '').split('\n').filter((line) => line !== '');
  const fields = lines.map((line) => line.split(':'));
  // Name, password, user number, group number, …
  return fields.map(([name = '', , uid, gid]) => ({ name, uid: Number(uid), gid: Number(gid) }));
}

function qemuUser(): User | undefined {
  const all = users();
  return QEMU_USERS.map((user) => all.find(({ name }) => name === user)).find((user) => user !== undefined);
}

/** Number of the group that QEMU runs in on this host, as far as /etc/passwd tells; undefined if there is no such user. */
export function qemuGroup(): number | undefined {
  const gid = qemuUser()?.gid;
  return Number.isInteger(gid) ? gid : undefined;
}

/** Number of the user that QEMU runs as on this host unless libvirt says otherwise; undefined if there is no such user. */
export function usualQemuUser(): number | undefined {
  const uid = qemuUser()?.uid;
  return Number.isInteger(uid) ? uid : undefined;
}

/** Number of a user, as libvirt's labels have it: `+64055`, or as somebody wrote it, by name or number. */
export function userNumber(user: string): number | undefined {
  const uid = users().find(({ name }) => name === user)?.uid;
  if (uid !== undefined) return uid;
  return /^\+?[0-9]{1,10}$/.test(user) ? Number(user) : undefined;
}
