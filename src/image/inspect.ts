import { type ImageOptions, readChain } from './chain.js';
import type { ExtentMap } from './extent-map.js';
import type { ImageChain } from './image-layer.js';
import type { ImageReference } from './image-reference.js';
import { LayeredMap } from './layered-map.js';
import type { MapLine } from './map-line.js';
import { type ByteRange, OwnRanges } from './own-ranges.js';
import { readImageMap } from './qemu-img.js';
import type { ImageSource } from './sources.js';

export interface InspectOptions extends ImageOptions {
  /** Find out as well what the image itself holds, which takes some 90 bytes of memory for each piece. */
  readonly own?: boolean | undefined;
  /** Told what the image is made of, which only its headers say, before it is found out what is where: to keep it from being written. */
  readonly hold?: ((layers: ImageChain) => Promise<void>) | undefined;
}

/** An image and everything it is made of. All but `extents` is plain JSON. */
export interface InspectedImage {
  /** Bytes, as QEMU presents the disk: a multiple of 512. */
  readonly virtualSize: number;
  /** The image itself first, then its backing files. */
  readonly layers: ImageChain;
  readonly extents: ExtentMap;
  /** What the image itself holds, zeros too; the rest is as its backing files have it. Undefined: nobody wanted to know. */
  readonly own: readonly ByteRange[] | undefined;
  /** In the order of the extent map's source numbers. */
  readonly sources: readonly ImageSource[];
}

/**
 * Finds out where each byte of an image is: one qemu-img run for each layer that has a header, and one for the map. Changes
 * nothing, and refuses images that are missing, unreadable, in use, encrypted, damaged, or whose headers are not to be trusted.
 */
export async function inspectImage(image: ImageReference, options: InspectOptions): Promise<InspectedImage> {
  const layers = await readChain(image, options);
  await options.hold?.(layers);
  const map = new LayeredMap(layers);
  const own = options.own === true ? new OwnRanges() : undefined;
  const add = (line: MapLine) => {
    map.add(line);
    own?.add(line);
  };
  await readImageMap(layers, add, options.signal);
  const { extents, sources } = map.finish();
  options.reporter.debug(
    `${image.path}: ${extents.size} bytes, ${extents.dataBytes} of them data in ${extents.count} extents, ` +
      `from ${sources.map((source) => (source.kind === 'file' ? source.path : 'a raw view')).join(', ') || 'nothing'}`,
  );
  return { virtualSize: extents.size, layers, extents, own: own?.ranges, sources };
}
