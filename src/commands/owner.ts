import * as fs from 'node:fs';
import { failed, systemCode, usage } from '../errors.js';

/** A number needs no file; some containers have none. */
function linesOf(file: string, evenWithout: boolean): string[] {
  try {
    return fs.readFileSync(file, 'utf8').split('\n');
  } catch (error) {
    if (evenWithout) return [];
    throw failed(`${file}, which has the numbers of names, cannot be read: ${systemCode(error) ?? error}`, {
      hint: 'give numbers: --owner=1000:1000',
      cause: error,
    });
  }
}

/** Number of a user or group, by name or number, from /etc/passwd or /etc/group (both: name, password, number, …). */
function lookup(file: string, what: string, name: string): { id: number; fields: string[] } {
  const isNumber = /^[0-9]{1,10}$/.test(name);
  const lines = linesOf(file, isNumber);
  const fields = lines.map((line) => line.split(':')).find((parts) => parts[0] === name || parts[2] === name);
  if (fields?.[2] !== undefined) return { id: Number(fields[2]), fields };
  if (isNumber) return { id: Number(name), fields: [] };
  throw usage(`there is no ${what} called ${JSON.stringify(name)} on this host`, {
    hint: 'give --owner=USER[:GROUP]',
  });
}

/** `USER[:GROUP]` → numbers; without a group, the user's own. Undefined: whoever runs the command. */
export function parseOwner(text: string | undefined): { uid: number; gid: number } {
  if (text === undefined) return { uid: process.getuid!(), gid: process.getgid!() };
  const [userName = '', groupName] = text.split(':');
  const user = lookup('/etc/passwd', 'user', userName);
  if (groupName !== undefined) return { uid: user.id, gid: lookup('/etc/group', 'group', groupName).id };
  const gid = user.fields[3];
  if (gid === undefined)
    throw usage(`user ${userName} has no group of its own`, { hint: `give --owner=${userName}:GROUP` });
  return { uid: user.id, gid: Number(gid) };
}
