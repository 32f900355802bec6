import { failed } from '../errors.js';
import type { ImageLayer, ImageOptions } from './chain.js';
import type { ExtentMap } from './extent-map.js';
import type { ImageReference } from './image-reference.js';
import type { ImageSource } from './sources.js';

/** An image and everything it is made of. All but `extents` is plain JSON. */
export interface InspectedImage {
  /** Bytes, as QEMU presents the disk: a multiple of 512. */
  readonly virtualSize: number;
  /** The image itself first, then its backing files. */
  readonly layers: readonly ImageLayer[];
  readonly extents: ExtentMap;
  /** In the order of the extent map's source numbers. */
  readonly sources: readonly ImageSource[];
}

/** Finds out where each byte of an image is. Changes nothing. */
export async function inspectImage(_image: ImageReference, _options: ImageOptions): Promise<InspectedImage> {
  throw failed('not implemented');
}
