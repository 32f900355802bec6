import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { failed } from '../../errors.js';
import { fsyncDirectory } from '../../host/durable.js';
import { isWrittenByQemu } from '../../image/image-lock.js';
import type { JournalEntry } from '../../session/journal.js';
import type { UndoHandler } from '../../session/undo.js';
import { identityOf, imageIdentity, isSameImage, wasWritten, writeMark } from '../image-identity.js';
import { REFLINK_KIND } from '../watched-kinds.js';

const cloneRecord = v.object({
  /** Id of the session that made it. */
  session: v.string(),
  target: v.string(),
  clone: v.string(),
  image: v.object({ path: v.string(), identity: imageIdentity }),

  /** Known once the empty file has been made. */
  file: v.optional(imageIdentity),
  /** What `writeMark` said of the clone when it was whole. */
  mark: v.optional(v.string()),
});

export type CloneRecord = v.InferOutput<typeof cloneRecord>;

/** The record of a `reflink-clone` entry. Throws if the journal holds something else. */
export function readCloneRecord(entry: JournalEntry): CloneRecord {
  return v.parse(cloneRecord, entry.data);
}

function isOurs({ clone, file }: CloneRecord): boolean {
  const actual = identityOf(clone);
  if (actual === undefined) return false;
  // Killed before the identity of the empty file was recorded: with anything in it, it is another one.
  return file === undefined ? fs.statSync(clone).size === 0 : isSameImage(actual, file);
}

/** Whether a clone that was whole is as it was then. */
function isUnwritten({ mark, clone, file }: CloneRecord): boolean {
  return wasWritten(mark, writeMark(clone), file?.bootId) === false;
}

/** What happened to a clone that was whole, as a clause; undefined if nothing did. */
export function cloneDamage(record: CloneRecord): string | undefined {
  if (record.mark === undefined) return undefined;
  if (!isOurs(record)) return 'is gone';
  return isUnwritten(record) ? undefined : 'was written';
}

const undoClone: UndoHandler = async (entry, { reporter }) => {
  const record = readCloneRecord(entry);
  const { clone, target } = record;
  if (!fs.existsSync(clone)) return;
  if (!isOurs(record)) {
    reporter.warn(`${clone} is not the clone that was made for the backup any more, and is left alone`);
    return;
  }
  if (record.mark !== undefined && !isUnwritten(record)) {
    reporter.warn(
      `the clone ${clone} of disk ${target} was written since it was made, and is left alone: remove it if nobody needs it`,
    );
    return;
  }
  if (await isWrittenByQemu(clone)) {
    throw failed(
      `the clone ${clone} of disk ${target} cannot be removed: another program has it open for writing`,
      {
        hint: `is it a disk of a VM now? see fuser -v ${clone}; then run cleanup again`,
      },
    );
  }
  fs.unlinkSync(clone);
  fsyncDirectory(path.dirname(clone));
};

export const cloneUndo = { [REFLINK_KIND]: undoClone };
