import type { ImageReference } from './image-reference.js';

/** A file or block device that an image is made of. */
export interface ImageFile {
  readonly path: string;
  readonly device: boolean;
  /** Bytes in the file; 0 for a block device. */
  readonly fileSize: number;
}

/** One image of a backing chain. Plain JSON. */
export interface ImageLayer extends ImageReference, ImageFile {
  /** The file that holds the layer's data if that is not the layer's own (qcow2's external data file). */
  readonly dataFile?: ImageFile | undefined;
  /** Size of the disk in bytes as the layer's header has it; undefined for raw. */
  readonly virtualSize?: number | undefined;
}

/** A whole backing chain: the image itself first, then its backing files, nearest first. */
export type ImageChain = readonly [ImageLayer, ...ImageLayer[]];
