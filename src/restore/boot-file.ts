import { randomBytes } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { failed, systemCode, usage } from '../errors.js';
import { fsyncDirectory } from '../host/durable.js';
import { isWrittenByQemu } from '../image/image-lock.js';
import { Virsh } from '../libvirt/virsh.js';
import type { Journal } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';
import { identityOf, identityOfDescriptor, imageIdentity, isSameImage } from '../snapshot/image-identity.js';
import { domainReferringTo } from '../snapshot/references.js';

/** Journal kind of a file that was made for a booted VM. */
export const BOOT_FILE = 'boot-file';

const Data = v.object({
  file: v.string(),
  /** Where it is made: a random name, which nobody else has. */
  temporary: v.string(),
  connect: v.optional(v.string()),
  /** Known before the file gets its name. */
  identity: v.optional(imageIdentity),
});

export interface BootFileRequest {
  /** Absolute; must not exist. */
  readonly file: string;
  readonly connect: string | undefined;
  readonly journal: Journal;
  /** Fills an empty file, open and by its (temporary) path. Must not put another file in its place. */
  readonly fill: (fd: number, file: string) => Promise<void>;
}

/** Makes a file, mode 0600, so that at any moment the journal proves that it is ours. Throws a usage error if it exists. */
export async function makeBootFile({ file, connect, journal, fill }: BootFileRequest): Promise<void> {
  const directory = path.dirname(file);
  const temporary = path.join(directory, `.${path.basename(file)}.${randomBytes(8).toString('hex')}`);
  const entry = journal.intend(BOOT_FILE, { file, temporary, ...(connect === undefined ? {} : { connect }) });
  const fd = fs.openSync(temporary, 'wx', 0o600);
  try {
    await fill(fd, temporary);
    fs.fsyncSync(fd);
    journal.done(entry, { identity: identityOfDescriptor(fd) });
  } finally {
    fs.closeSync(fd);
  }
  try {
    // Unlike a rename, this never replaces what somebody else put there.
    fs.linkSync(temporary, file);
  } catch (error) {
    if (systemCode(error) !== 'EEXIST') throw error;
    throw usage(`${file} exists`, { hint: 'give another --name or --storage', cause: error });
  }
  fs.unlinkSync(temporary);
  fsyncDirectory(directory);
}

/** Removes the file if it is the one that was made, and no VM has it any more. */
const undoBootFile: UndoHandler = async (entry, { reporter, signal }) => {
  const { file, temporary, identity, connect } = v.parse(Data, entry.data);
  fs.rmSync(temporary, { force: true });
  const found = identityOf(file);
  if (identity === undefined || found === undefined) return;
  if (!isSameImage(found, identity)) {
    reporter.warn(`${file} is not the file that was made for the VM any more, and is left alone`);
    return;
  }
  const user = await domainReferringTo(new Virsh({ connect, signal }), file);
  if (user !== undefined)
    throw failed(`${file} is used by the VM ${user}`, { hint: `see virsh domblklist ${user}` });
  if (await isWrittenByQemu(file))
    throw failed(`another program writes ${file}`, { hint: 'end it, then discard again' });
  fs.unlinkSync(file);
};

export const bootFileUndo = { [BOOT_FILE]: undoBootFile };
