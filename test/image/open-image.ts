import * as fs from 'node:fs';
import * as path from 'node:path';
import { ExtentReader } from '../../src/image/extent-reader.js';
import type { ImageReference } from '../../src/image/image-reference.js';
import { type InspectedImage, type InspectOptions, inspectImage } from '../../src/image/inspect.js';
import { type RawView, startRawView } from '../../src/image/raw-view.js';
import { rawViewUndo } from '../../src/image/raw-view-undo.js';
import { closeSources, openSources } from '../../src/image/sources.js';
import { silentReporter } from '../../src/report/reporter.js';
import { Journal } from '../../src/session/journal.js';
import { undoAll } from '../../src/session/undo.js';
import type { OpenDisk } from '../contracts/image-reader.js';
import { temporaryDirectory } from '../support/images.js';

/** What a session has for its views: a directory with a journal and a log. */
export class ViewSession {
  readonly directory = temporaryDirectory();
  readonly mountpoint = path.join(this.directory, 'view');
  readonly logFile = path.join(this.directory, 'log');
  #journal = new Journal(path.join(this.directory, 'journal.jsonl'));

  get journal(): Journal {
    return this.#journal;
  }

  start({ layers, virtualSize }: InspectedImage, signal?: AbortSignal): Promise<RawView> {
    const { mountpoint, logFile, journal } = this;
    return startRawView({ layers, virtualSize, mountpoint, logFile, journal, signal });
  }

  /** Reads the journal again, as the next process would, and undoes it. */
  async undo(): Promise<Error[]> {
    this.#journal.close();
    this.#journal = new Journal(this.#journal.file);
    return undoAll({ journal: this.#journal, reporter: silentReporter }, rawViewUndo, new Set());
  }

  async close(): Promise<void> {
    const [error] = await this.undo();
    this.#journal.close();
    if (error !== undefined) throw error;
    fs.rmSync(this.directory, { recursive: true });
  }
}

export function inspect(
  image: ImageReference,
  options: Pick<InspectOptions, 'held'> = {},
): Promise<InspectedImage> {
  return inspectImage(image, { ...options, reporter: silentReporter });
}

/** What `open` gives; when it throws, nothing of the session is left. */
async function inSession(open: (session: ViewSession) => Promise<OpenDisk>): Promise<OpenDisk> {
  const session = new ViewSession();
  try {
    const disk = await open(session);
    const close = async () => {
      await disk.close();
      await session.close();
    };
    return { ...disk, close };
  } catch (error) {
    await session.close();
    throw error;
  }
}

/** As a session reads it: extents from the files, and a raw view where it takes one. */
export function openImage(image: ImageReference): Promise<OpenDisk> {
  return inSession(async (session) => {
    const inspected = await inspect(image);
    const needsView = inspected.sources.some(({ kind }) => kind === 'view');
    const view = needsView ? await session.start(inspected) : undefined;
    const sources = openSources(inspected.sources, inspected.virtualSize, view?.path);
    const reader = new ExtentReader('disk0', inspected.extents, sources);
    return {
      size: reader.size,
      read: (position, length, buffer, bufferOffset) => reader.read(position, length, buffer, bufferOffset),
      close: async () => closeSources(sources),
    };
  });
}

/** The whole disk, by openImage. */
export async function readImage(image: ImageReference): Promise<Buffer> {
  const disk = await openImage(image);
  try {
    const bytes = Buffer.alloc(disk.size);
    disk.read(0, disk.size, bytes, 0);
    return bytes;
  } finally {
    await disk.close();
  }
}

/** All of it through a raw view. */
export function openThroughView(image: ImageReference): Promise<OpenDisk> {
  return inSession(async (session) => {
    const view = await session.start(await inspect(image));
    const fd = fs.openSync(view.path, 'r');
    return {
      size: fs.fstatSync(fd).size,
      read: (position, length, buffer, bufferOffset) => {
        let done = 0;
        while (done < length) {
          const count = fs.readSync(fd, buffer, bufferOffset + done, length - done, position + done);
          if (count === 0) throw new Error('the view ends early');
          done += count;
        }
      },
      close: async () => fs.closeSync(fd),
    };
  });
}
