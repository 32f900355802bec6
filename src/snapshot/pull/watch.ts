import * as fs from 'node:fs';
import * as path from 'node:path';
import { messageOf } from '../../errors.js';
import { Virsh } from '../../libvirt/virsh.js';
import type { JournalEntry } from '../../session/journal.js';
import type { Once, WatchRequest } from '../watch-request.js';
import { endJob, isServing } from './job.js';
import { noteEnd, spaceFor } from './place.js';
import { type JobRecord, readJobRecord } from './record.js';

/** Ending a job takes some tenths of a second, as many looks as this, and the guest goes on writing meanwhile. */
const LOOKS_TO_END = 4;

/** What a scratch file took up at the last look, and the most that it grew between two looks. */
interface Growth {
  readonly used: number;
  readonly most: number;
}

const growths = new Map<string, Growth>();

/** The most, in bytes, that a scratch file has grown by from one look to the next. Others who fill the disk say nothing of the guest. */
function growthOf(scratch: string): number {
  const used = (fs.statSync(scratch, { throwIfNoEntry: false })?.blocks ?? 0) * 512;
  const before = growths.get(scratch) ?? { used, most: 0 };
  const most = Math.max(before.most, used - before.used);
  growths.set(scratch, { used, most });
  return most;
}

/** A sentence if a scratch file is about to have no room. */
function shortOfSpace({ scratches, domain }: JobRecord): string | undefined {
  const fastest = scratches.reduce((sum, scratch) => sum + growthOf(scratch), 0);
  for (const scratch of scratches) {
    const { free, floor } = spaceFor(scratch);
    const needed = Math.max(floor, LOOKS_TO_END * fastest);
    if (free >= needed) continue;
    const mib = (bytes: number) => Math.ceil(bytes / 2 ** 20);
    return (
      `${path.dirname(scratch)} had only ${mib(free)} MiB left for scratch files (${mib(needed)} are needed to be safe): ` +
      `the backup job of ${domain.name} was ended before it could harm the VM`
    );
  }
  return undefined;
}

/** Looks after a backup job, once: a full scratch file would make the guest's writes fail, and without the job there is no disk. */
export async function watchPull(entry: JournalEntry, request: WatchRequest, once: Once): Promise<void> {
  const record = readJobRecord(entry);
  if (once.has('job gone')) return;
  const lose = (sentence: string) => once.do('job gone', () => request.onLost(sentence));
  const short = shortOfSpace(record);
  if (short !== undefined) {
    noteEnd(record.directory, short);
    const virsh = new Virsh({ connect: record.connect });
    try {
      // Its server listens, and a VM has one job at most: it is ours, and no time is to be lost.
      if (isServing(record)) await virsh.abortDomainJob(record.domain.uuid).catch(() => undefined);
      await endJob(virsh, record);
    } catch (error) {
      once.do(messageOf(error), () =>
        request.reporter.warn(`the backup job of ${record.domain.name} cannot be ended: ${messageOf(error)}`),
      );
      return;
    }
    lose(short);
  } else if (!isServing(record)) {
    lose(`the backup job of ${record.domain.name} ended too early`);
  }
}
