import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { failed } from '../errors.js';
import { fsyncDirectory, isDiskFull, nameFile, replaceFile, writeFully } from '../host/durable.js';

export type JournalData = Readonly<Record<string, unknown>>;

/** One change to the host: what was intended, and, once it is known to have happened, what came of it. */
export interface JournalEntry {
  readonly seq: number;
  /** Names the undo handler, e.g. `mount` or `overlay`. */
  readonly kind: string;
  /** What was written with the intent, overlaid by what was written when it was done. */
  readonly data: JournalData;
  /** False: the change may have happened, wholly, partly or not at all. */
  readonly done: boolean;
}

type JournalRecord =
  | {
      readonly step: 'intent';
      readonly seq: number;
      readonly kind: string;
      readonly data: JournalData;
      readonly at: string;
    }
  | { readonly step: 'done'; readonly seq: number; readonly data: JournalData; readonly at: string }
  | { readonly step: 'undone'; readonly seq: number; readonly at: string };

/** Length of the checksum in front of each line: 16 hex digits of the line's SHA-256. */
const SUM_LENGTH = 16;

function sum(line: string): string {
  return createHash('sha256').update(line).digest('hex').slice(0, SUM_LENGTH);
}

function lineOf(record: JournalRecord): string {
  const line = JSON.stringify(record);
  return `${sum(line)} ${line}\n`;
}

/**
 * The records of a journal file, and their length in bytes. A last line that was cut off by a crash is no record: its action
 * never began.
 */
function parseRecords(file: string, text: string): { records: JournalRecord[]; length: number } {
  const lines = text.split('\n');
  const torn = lines.pop();
  const records: JournalRecord[] = [];
  let length = 0;
  for (const [index, line] of lines.entries()) {
    const body = line.slice(SUM_LENGTH + 1);
    if (line.slice(0, SUM_LENGTH) === sum(body)) {
      records.push(JSON.parse(body) as JournalRecord);
      length += Buffer.byteLength(line) + 1;
    } else if (index < lines.length - 1 || torn !== '') {
      throw failed(`the journal ${file} is damaged in line ${index + 1}`, {
        hint: 'look at the VM by hand (virsh domblklist, lvs, mount), then move the journal away',
      });
    }
  }
  return { records, length };
}

/** What is left to be undone after some records. */
class Replay {
  readonly #entries = new Map<number, JournalEntry>();
  /** Never given before. */
  next = 1;

  get(seq: number): JournalEntry {
    return this.#entries.get(seq)!;
  }

  /** Newest first. */
  pending(): JournalEntry[] {
    return [...this.#entries.values()].sort((a, b) => b.seq - a.seq);
  }

  apply(record: JournalRecord): void {
    this.next = Math.max(this.next, record.seq + 1);
    if (record.step === 'intent') {
      this.#entries.set(record.seq, { seq: record.seq, kind: record.kind, data: record.data, done: false });
      return;
    }
    if (record.step === 'undone') {
      this.#entries.delete(record.seq);
      return;
    }
    const entry = this.#entries.get(record.seq);
    if (entry !== undefined) {
      this.#entries.set(record.seq, { ...entry, data: { ...entry.data, ...record.data }, done: true });
    }
  }
}

/**
 * What the journal at `file` says is to be undone, newest first: for those who do not hold the session's lock. Changes nothing: what
 * looks like a torn line may be one that is being written.
 */
export function readPending(file: string): JournalEntry[] {
  const replay = new Replay();
  for (const record of parseRecords(file, fs.readFileSync(file, 'utf8')).records) replay.apply(record);
  return replay.pending();
}

/**
 * What a session changed on the host, in a file that survives a crash. Each change is recorded before it is made
 * (`intend`) and after (`done`); each record is on disk when the call returns. `pending` is what has to be undone. To be opened by
 * whoever holds the session's lock.
 */
export class Journal {
  #fd: number;
  readonly #replay = new Replay();
  /** Bytes of whole records in the file. */
  #length: number;

  /** Opens the journal, making it if it does not exist. Its directory must exist. Throws if it is damaged. */
  constructor(readonly file: string) {
    this.#fd = fs.openSync(file, 'a+', 0o600);
    fsyncDirectory(path.dirname(file));
    const { records, length } = parseRecords(file, fs.readFileSync(file, 'utf8'));
    for (const record of records) this.#replay.apply(record);
    // A torn last line would swallow the next record, or count as damage once another follows.
    if (fs.fstatSync(this.#fd).size > length) fs.ftruncateSync(this.#fd, length);
    this.#length = length;
  }

  /** Records what is about to be done. `data` must be enough to find and undo it, whatever happens next. */
  intend(kind: string, data: JournalData): JournalEntry {
    const seq = this.#replay.next;
    this.#write({ step: 'intent', seq, kind, data, at: new Date().toISOString() });
    return this.#replay.get(seq);
  }

  /** Records that it has been done, with facts that were not known before. */
  done(entry: JournalEntry, data: JournalData = {}): JournalEntry {
    this.#write({ step: 'done', seq: entry.seq, data, at: new Date().toISOString() });
    return this.#replay.get(entry.seq);
  }

  /** Records that nothing of it is left. On a full disk it is not recorded: the next cleanup then looks again, and finds nothing. */
  undone(entry: JournalEntry): void {
    const record = { step: 'undone', seq: entry.seq, at: new Date().toISOString() } as const;
    try {
      this.#write(record);
    } catch (error) {
      // What is undone next may be what takes up the room.
      if (!isDiskFull(error)) throw error;
      this.#replay.apply(record);
    }
  }

  /** What was intended and not undone, newest first: the order in which to undo it. */
  pending(): JournalEntry[] {
    return this.#replay.pending();
  }

  /** The newest pending entry of a kind. */
  find(kind: string): JournalEntry | undefined {
    return this.pending().find((entry) => entry.kind === kind);
  }

  /** Leaves in the file what is pending only. */
  compact(): void {
    const lines = this.pending()
      .reverse()
      .flatMap(({ seq, kind, data, done }) => {
        const at = new Date().toISOString();
        const intent: JournalRecord = { step: 'intent', seq, kind, data, at };
        return done ? [intent, { step: 'done', seq, data: {}, at } as const] : [intent];
      })
      .map(lineOf);
    replaceFile(this.file, lines.join(''));
    fs.closeSync(this.#fd);
    this.#fd = fs.openSync(this.file, 'a+', 0o600);
    this.#length = fs.fstatSync(this.#fd).size;
  }

  close(): void {
    fs.closeSync(this.#fd);
  }

  #write(record: JournalRecord): void {
    const bytes = Buffer.from(lineOf(record));
    try {
      writeFully(this.#fd, bytes);
      fs.fdatasyncSync(this.#fd);
    } catch (error) {
      // On a full file system a part may be there, and what is undone now will be recorded after it.
      fs.ftruncateSync(this.#fd, this.#length);
      throw nameFile(error, this.file);
    }
    this.#length += bytes.length;
    this.#replay.apply(record);
  }
}
