import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import * as v from 'valibot';
import { failed, systemCode } from '../errors.js';
import { fsyncDirectory, makeDirectory, readIfExists, writeFully } from '../host/durable.js';
import { signalProcess, waitForEnd } from '../host/process-identity.js';
import { findProcesses } from '../host/process-list.js';
import type { Journal, JournalEntry } from '../session/journal.js';
import type { UndoHandler } from '../session/undo.js';

/** Journal kind of the files of a dump. */
export const DUMP = 'dump';

const PARTIAL = '.partial';
const MODE = 0o600;
/** Bytes at once. */
const COPY_LENGTH = 1024 * 1024;
const END_TIMEOUT_MS = 10_000;

const Data = v.object({
  directory: v.string(),
  /** The directory was not there before. */
  made: v.boolean(),
  /** Final names, in the order in which they get them: the sums come last. */
  files: v.array(v.string()),
  /** Names of files that are of no use afterwards. */
  scratch: v.array(v.string()),
  /** All are complete and on disk: from now on the new dump replaces the old one. */
  complete: v.optional(v.boolean(), false),
  /** Files of the dump before that the new one replaces under other names. */
  obsolete: v.optional(v.array(v.string()), []),
});

type Owner = { readonly uid: number; readonly gid: number };

/** Makes a new file of a dump and opens it for writing. */
export function createFile(file: string, { uid, gid }: Owner): number {
  const fd = fs.openSync(file, 'wx', MODE);
  try {
    if (process.getuid!() === 0) fs.fchownSync(fd, uid, gid);
    return fd;
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

export function partialOf(file: string): string {
  return file + PARTIAL;
}

/** No file takes the place of a directory: that would show when others have their names already. */
function refuseDirectory(place: string): void {
  if (fs.lstatSync(place, { throwIfNoEntry: false })?.isDirectory() !== true) return;
  throw failed(`${place} is a directory, in the place of a file of the dump`, {
    hint: 'move it away, or give another --backupdir',
  });
}

export interface DumpFilesRequest {
  /** Absolute. */
  readonly directory: string;
  /** Names in it; the file of the sums is the last. */
  readonly files: readonly string[];
  /** Names of more files that may be made there, as partial ones, and are of no use afterwards. */
  readonly scratch: readonly string[];
  readonly owner: Owner;
  readonly journal: Journal;
}

/**
 * The files of one dump while they are written: each under its name and `.partial`, until all are complete. A crash before that
 * leaves the dump before as it was; after it, cleanup goes on with giving the new one its names.
 */
export class DumpFiles {
  readonly directory: string;
  readonly #entry: JournalEntry;
  readonly #request: DumpFilesRequest;

  constructor(request: DumpFilesRequest) {
    const { directory, files, scratch, owner, journal } = request;
    this.directory = directory;
    this.#request = request;
    for (const file of [...files, ...[...files, ...scratch].map(partialOf)])
      refuseDirectory(path.join(directory, file));
    const made = !fs.existsSync(directory);
    this.#entry = journal.intend(DUMP, { directory, made, files, scratch });
    makeDirectory(directory);
    if (made && process.getuid!() === 0) fs.chownSync(directory, owner.uid, owner.gid);
    for (const file of [...files, ...scratch]) fs.rmSync(this.partial(file), { force: true });
  }

  /** Where the file `name` is written to. */
  partial(name: string): string {
    return path.join(this.directory, partialOf(name));
  }

  /** Writes a whole small file. Returns the hex digits of its SHA-256. */
  write(name: string, content: Uint8Array): string {
    const fd = createFile(this.partial(name), this.#request.owner);
    try {
      writeFully(fd, content);
      fs.fsyncSync(fd);
    } finally {
      fs.closeSync(fd);
    }
    return createHash('sha256').update(content).digest('hex');
  }

  /** Copies a whole file that may be large. Returns its size in bytes, and the hex digits of its SHA-256. */
  async copy(name: string, source: string): Promise<{ size: number; sha256: string }> {
    const hash = createHash('sha256');
    const fd = createFile(this.partial(name), this.#request.owner);
    let size = 0;
    try {
      for await (const piece of fs.createReadStream(source, { highWaterMark: COPY_LENGTH })) {
        const bytes = piece as Buffer;
        hash.update(bytes);
        writeFully(fd, bytes);
        size += bytes.byteLength;
      }
      fs.fsyncSync(fd);
    } finally {
      fs.closeSync(fd);
    }
    return { size, sha256: hash.digest('hex') };
  }

  /** All files have been written and synced: gives them their names and removes `obsolete`. */
  publish(obsolete: readonly string[]): void {
    const { journal } = this.#request;
    const { data } = journal.done(this.#entry, { complete: true, obsolete });
    publish(v.parse(Data, data));
    journal.undone(this.#entry);
  }
}

function publish({ directory, files, obsolete }: v.InferOutput<typeof Data>): void {
  for (const file of files) {
    const final = path.join(directory, file);
    try {
      fs.renameSync(partialOf(final), final);
    } catch (error) {
      // It has its name already: we were cut off.
      if (systemCode(error) !== 'ENOENT' || !fs.existsSync(final)) throw error;
    }
  }
  fsyncDirectory(directory);
  for (const file of obsolete) fs.rmSync(path.join(directory, file), { force: true });
}

/** A conversion that outlived us still writes into a file of ours, and keeps its source from being written. */
async function endWriters(files: readonly string[]): Promise<void> {
  for (const writer of findProcesses(
    (argv) => argv.includes('convert') && files.includes(argv.at(-1) ?? ''),
  )) {
    signalProcess(writer, 'SIGKILL');
    if (!(await waitForEnd(writer, END_TIMEOUT_MS))) {
      throw failed(`process ${writer.pid}, which writes a dump that was cut off, cannot be ended`, {
        hint: 'it waits for a disk that does not answer: look at dmesg, then clean up again',
      });
    }
  }
}

async function discard({ directory, made, files, scratch }: v.InferOutput<typeof Data>): Promise<void> {
  const partial = [...files, ...scratch].map((file) => path.join(directory, partialOf(file)));
  await endWriters(partial);
  for (const file of partial) fs.rmSync(file, { force: true });
  if (!made) return;
  try {
    fs.rmdirSync(directory);
  } catch (error) {
    const code = systemCode(error);
    if (code !== 'ENOENT' && code !== 'ENOTEMPTY') throw error;
  }
}

const undoDump: UndoHandler = async (entry, { reporter }) => {
  const data = v.parse(Data, entry.data);
  if (!data.complete) {
    await discard(data);
    return;
  }
  publish(data);
  reporter.notice(`the dump in ${data.directory} was complete and has its names now`);
};

export const dumpUndo = { [DUMP]: undoDump };

/** The lines of a file of sums that name a plain file: name to hex digits. */
export function readSums(file: string): Map<string, string> {
  const lines = (readIfExists(file) ?? '').split('\n');
  const matches = lines.map((line) => /^([0-9a-f]{64}) {2}([^/\\]+)$/.exec(line));
  return new Map(matches.flatMap((match) => (match === null ? [] : [[match[2]!, match[1]!] as const])));
}
