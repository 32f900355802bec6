import { failed } from '../errors.js';
import type { ProcessIdentity } from '../host/process-identity.js';
import type { Journal } from '../session/journal.js';
import type { UndoHandler, UndoHandlers } from '../session/undo.js';
import type { ImageLayer } from './chain.js';

/** Journal kind of a raw view. */
export const RAW_VIEW = 'raw-view';

export interface RawViewRequest {
  /** The image's chain, as InspectedImage has it. */
  readonly layers: readonly ImageLayer[];
  /** Size of the disk in bytes, as InspectedImage has it. */
  readonly virtualSize: number;
  /** The file to show the disk as; must not exist, its directory must. Absolute, in a directory that only we write. */
  readonly mountpoint: string;
  /** What the storage daemon says is appended here. */
  readonly logFile: string;
  readonly journal: Journal;
  readonly signal?: AbortSignal | undefined;
}

export interface RawView {
  /** The file whose bytes are the disk's: the request's mountpoint. */
  readonly path: string;
  /** The storage daemon, which outlives us. */
  readonly identity: ProcessIdentity;
}

/** Shows an image of any format as a raw file, decoded by QEMU. Returns once the file can be read. */
export async function startRawView(_request: RawViewRequest): Promise<RawView> {
  throw failed('not implemented');
}

/** Ends a raw view: storage daemon, mount, mountpoint. */
export const undoRawView: UndoHandler = async () => {
  throw failed('not implemented');
};

export const rawViewUndo: UndoHandlers = { [RAW_VIEW]: undoRawView };
