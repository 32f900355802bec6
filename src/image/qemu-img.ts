import * as v from 'valibot';
import { type ChunkmountError, failed, messageOf } from '../errors.js';
import { CommandError } from '../host/command-error.js';
import { run, runLines } from '../host/exec.js';
import { type BlockNode, chainNode, imageNode } from './block-node.js';
import type { ImageChain, ImageFile } from './image-layer.js';
import type { ImageReference } from './image-reference.js';
import { type MapLine, parseMapLine } from './map-line.js';

/** Reading all metadata of a fragmented image of many terabytes from a slow disk takes minutes. */
const MAP_TIMEOUT_MS = 3_600_000;

const bytes = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

/** What we use of `qemu-img info --output=json` (ImageInfo in QEMU's qapi/block-core.json). */
const infoSchema = v.object({
  'virtual-size': bytes,
  encrypted: v.optional(v.boolean(), false),
  'backing-filename': v.optional(v.string()),
  'backing-filename-format': v.optional(v.string()),
  'format-specific': v.optional(
    v.object({
      data: v.object({
        'data-file': v.optional(v.string()),
        corrupt: v.optional(v.boolean(), false),
        extents: v.optional(v.array(v.object({ filename: v.string() })), []),
      }),
    }),
  ),
});

/** What an image's header says. Names are as recorded: hostile until checked. */
export interface ImageInfo {
  readonly virtualSize: number;
  readonly encrypted: boolean;
  /** The image is marked as damaged (qcow2). */
  readonly corrupt: boolean;
  readonly backing: { readonly name: string; readonly format: string | undefined } | undefined;
  readonly dataFile: string | undefined;
  /** The files that hold the data (vmdk); empty for formats of one file. */
  readonly extentFiles: readonly string[];
}

function pseudoFilename(node: BlockNode): string {
  return `json:${JSON.stringify(node)}`;
}

function unreadable(image: { path: string; format: string }, why: string, cause: unknown): ChunkmountError {
  return failed(`the image ${image.path} cannot be read as ${image.format}: ${why}`, {
    hint: `check it: qemu-img check -f ${image.format} (or give the right --format if it is another one)`,
    details: { path: image.path, format: image.format },
    cause,
  });
}

/** What to throw instead of `error`: qemu-img's own complaint, with the image's path in place of our JSON name for it. */
function explain(image: { path: string; format: string }, filename: string, error: unknown): unknown {
  if (error instanceof v.ValiError || error instanceof SyntaxError) {
    return unreadable(image, `qemu-img gave an unexpected answer: ${messageOf(error)}`, error);
  }
  if (!(error instanceof CommandError) || error.exitCode === undefined) return error;
  const said = error.stderr.replaceAll(filename, image.path).replace(/\s*\n\s*/g, '; ');
  return unreadable(image, said, error);
}

/** Reads an image's header. Opens this one file (and what a VMDK descriptor names), no backing file. */
export async function imageInfo(
  image: ImageFile & Pick<ImageReference, 'format' | 'nbdExport'>,
  signal?: AbortSignal | undefined,
): Promise<ImageInfo> {
  const filename = pseudoFilename(imageNode(image));
  try {
    const { stdout } = await run('qemu-img', ['info', '-f', image.format, '--output=json', filename], {
      signal,
    });
    const info = v.parse(infoSchema, JSON.parse(stdout));
    const specific = info['format-specific']?.data;
    const name = info['backing-filename'];
    return {
      virtualSize: info['virtual-size'],
      encrypted: info.encrypted,
      corrupt: specific?.corrupt ?? false,
      backing: name === undefined ? undefined : { name, format: info['backing-filename-format'] },
      dataFile: specific?.['data-file'],
      extentFiles: specific?.extents.map((extent) => extent.filename) ?? [],
    };
  } catch (error) {
    throw explain(image, filename, error);
  }
}

/** Calls `add` for each extent of a chain, in order, as `qemu-img map` gives them. What `add` throws is passed on. */
export async function readImageMap(
  layers: ImageChain,
  add: (extent: MapLine) => void,
  signal?: AbortSignal | undefined,
): Promise<void> {
  const [top] = layers;
  const filename = pseudoFilename(chainNode(layers));
  const args = ['map', '-f', top.format, '--output=json', filename];
  try {
    for await (const line of runLines('qemu-img', args, { signal, timeoutMs: MAP_TIMEOUT_MS })) {
      const extent = parseMapLine(line);
      if (extent !== undefined) add(extent);
    }
  } catch (error) {
    throw explain(top, filename, error);
  }
}
