import { createHash } from 'node:crypto';
import * as fs from 'node:fs/promises';
import { pageBuffer } from '../host/page-buffer.js';
import type { Reporter } from '../report/reporter.js';

const PIECE_BYTES = 1024 * 1024;
const ZEROS = Buffer.alloc(PIECE_BYTES);

export interface FileWork {
  /** For the progress display. */
  readonly label: string;
  readonly reporter: Reporter;
  readonly signal?: AbortSignal | undefined;
}

/** Calls `use` with each piece of a file. */
async function eachPiece(
  file: string,
  work: FileWork,
  use: (piece: Buffer, offset: number) => Promise<void> | void,
): Promise<number> {
  const handle = await fs.open(file, 'r');
  const task = work.reporter.progress(work.label, (await handle.stat()).size);
  try {
    const buffer = pageBuffer(PIECE_BYTES);
    let offset = 0;
    for (;;) {
      work.signal?.throwIfAborted();
      const { bytesRead } = await handle.read(buffer, 0, PIECE_BYTES, offset);
      if (bytesRead === 0) return offset;
      await use(buffer.subarray(0, bytesRead), offset);
      offset += bytesRead;
      task.advance(bytesRead);
    }
  } finally {
    task.end();
    await handle.close();
  }
}

async function writeAt(handle: fs.FileHandle, piece: Buffer, offset: number): Promise<void> {
  let done = 0;
  while (done < piece.length) {
    done += (await handle.write(piece, done, piece.length - done, offset + done)).bytesWritten;
  }
}

/** Copies a file that nobody writes into one that is there and empty. Zeros become holes. */
export async function copyFile(from: string, to: string, work: FileWork): Promise<void> {
  const handle = await fs.open(to, 'r+');
  try {
    const size = await eachPiece(from, work, async (piece, offset) => {
      if (!piece.equals(ZEROS.subarray(0, piece.length))) await writeAt(handle, piece, offset);
    });
    await handle.truncate(size);
  } finally {
    await handle.close();
  }
}

export async function syncFile(file: string): Promise<void> {
  const handle = await fs.open(file, 'r+');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** SHA-256 of a file, as hex digits. */
export async function sumOf(file: string, work: FileWork): Promise<string> {
  const hash = createHash('sha256');
  await eachPiece(file, work, (piece) => {
    hash.update(piece);
  });
  return hash.digest('hex');
}
