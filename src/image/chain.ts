import type { Reporter } from '../report/reporter.js';
import type { ImageReference } from './image-reference.js';

export interface ImageOptions {
  readonly signal?: AbortSignal | undefined;
  readonly reporter: Reporter;
}

/** One file of a backing chain. */
export interface ImageLayer extends ImageReference {
  readonly device: boolean;
  /** Bytes in the file; 0 for a block device. */
  readonly fileSize: number;
  /** The file that holds the layer's data if it is not in the layer's own (qcow2's external data file). */
  readonly dataFile?: { readonly path: string; readonly device: boolean; readonly fileSize: number };
  /** Size of the disk in bytes as the layer's header has it; undefined for raw. */
  readonly virtualSize?: number;
}
