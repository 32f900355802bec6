import * as fs from 'node:fs';
import { failed } from '../../errors.js';
import { isWrittenByQemu } from '../../image/image-lock.js';
import { Virsh } from '../../libvirt/virsh.js';
import type { UndoHandler } from '../../session/undo.js';
import { identityOf, isSameImage } from '../image-identity.js';
import { PULL_JOB_KIND, PULL_KIND } from '../watched-kinds.js';
import { endJob } from './job.js';
import { removeSocketDirectory } from './place.js';
import { readJobRecord, readPullRecord } from './record.js';

/** Ends our backup job, and no other one. */
const undoJob: UndoHandler = async (entry, { signal }) => {
  const record = readJobRecord(entry);
  await endJob(new Virsh({ connect: record.connect, signal }), record, signal);
  removeSocketDirectory(record.directory, record.socket);
};

/** Removes a scratch file, once no job uses it. What it holds is of no use to anybody then. */
const undoScratch: UndoHandler = async (entry, { reporter }) => {
  const { scratch, file, target, domain } = readPullRecord(entry);
  const found = identityOf(scratch);
  if (found === undefined) return;
  const ours = file === undefined ? fs.statSync(scratch).size === 0 : isSameImage(found, file);
  if (!ours) {
    reporter.warn(`${scratch} is not the file that was made for the backup any more, and is left alone`);
    return;
  }
  if (await isWrittenByQemu(scratch)) {
    throw failed(`the backup job of ${domain.name} still uses ${scratch} for disk ${target}`, {
      hint: `see virsh domjobinfo ${domain.name}; when it has ended, run cleanup again`,
    });
  }
  fs.unlinkSync(scratch);
};

export const pullUndo = { [PULL_KIND]: undoScratch, [PULL_JOB_KIND]: undoJob };
