import type { ImageChain, ImageFile, ImageLayer } from './image-layer.js';
import type { ImageReference } from './image-reference.js';

/** A block node as QEMU's blockdev-add takes it. */
export type BlockNode = Readonly<Record<string, unknown>>;

/** The node of an export. A server that is gone stays gone: its readers get errors at once, and never wait for another one. */
export function nbdNode(socket: string, nbdExport: string): BlockNode {
  return {
    driver: 'nbd',
    server: { type: 'unix', path: socket },
    export: nbdExport,
    'reconnect-delay': 0,
    'read-only': true,
  };
}

/** The node of a file itself. As JSON, no character in a name is special to QEMU. */
function fileNode(file: ImageFile & Pick<ImageReference, 'nbdExport'>): BlockNode {
  if (file.nbdExport !== undefined) return nbdNode(file.path, file.nbdExport);
  return { driver: file.device ? 'host_device' : 'file', filename: file.path };
}

/** Formats whose images can have a backing file that QEMU opens; the nodes of the others take no `backing`. */
const WITH_BACKING: readonly string[] = ['qcow2', 'qcow', 'qed', 'vmdk'];

function formatNode(
  layer: ImageFile & Pick<ImageReference, 'format' | 'inUse' | 'nbdExport'>,
  backing: BlockNode | null,
): BlockNode {
  const below = WITH_BACKING.includes(layer.format) ? { backing } : {};
  // Who writes it stands still, so its lock says nothing.
  const share = layer.inUse === true ? { 'force-share': true } : {};
  return { driver: layer.format, 'read-only': true, ...share, file: fileNode(layer), ...below };
}

/** The node of one image without its backing file. */
export function imageNode(
  image: ImageFile & Pick<ImageReference, 'format' | 'inUse' | 'nbdExport'>,
): BlockNode {
  return formatNode(image, null);
}

/**
 * The node of a whole chain, with driver and file of each layer spelled out: QEMU neither probes a format nor follows a name
 * from an image's header.
 */
export function chainNode(layers: ImageChain): BlockNode {
  const [top, ...below] = layers;
  const node = (layer: ImageLayer, backing: BlockNode | null) => ({
    ...formatNode(layer, backing),
    ...(layer.dataFile === undefined ? {} : { 'data-file': fileNode(layer.dataFile) }),
  });
  return node(
    top,
    below.reduceRight<BlockNode | null>((backing, layer) => node(layer, backing), null),
  );
}
