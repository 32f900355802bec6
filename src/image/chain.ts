import * as fs from 'node:fs';
import * as path from 'node:path';
import { type ChunkmountError, failed, systemCode } from '../errors.js';
import type { Reporter } from '../report/reporter.js';
import { isImageFormat } from './format.js';
import type { ImageChain, ImageFile, ImageLayer } from './image-layer.js';
import { isWrittenByQemu } from './image-lock.js';
import type { ImageReference } from './image-reference.js';
import { checkQcow2Bounds } from './qcow2-bounds.js';
import { type ImageInfo, imageInfo } from './qemu-img.js';

export interface ImageOptions {
  readonly signal?: AbortSignal | undefined;
  readonly reporter: Reporter;
  /** Files that are known to be kept from being written, by QEMU's locks. */
  readonly held?: ReadonlySet<string> | undefined;
}

/** Deeper chains are refused: QEMU recurses, and libvirt's own limit is 200. */
const MAX_LAYERS = 64;

/** QEMU takes what comes before a colon for a protocol unless a slash comes first (path_has_protocol in its block.c). */
const PROTOCOL = /^[^/:]*:/;

function refused(file: string, why: string, hint?: string): ChunkmountError {
  return failed(`the image ${file} ${why}`, { hint, details: { path: file } });
}

const RIGHT_PATH = 'is its path right, and is its file system mounted?';

type LookedAt = ImageFile & { readonly identity: string };

/** Looks at one file of an image: it must be there, of a kind that can be read, readable, and written by nobody, unless it may be `inUse`. */
async function lookAt(
  { path: file, inUse }: Pick<ImageReference, 'path' | 'inUse'>,
  role: string,
  { held }: ImageOptions,
): Promise<LookedAt> {
  try {
    const found = fs.statSync(file);
    const device = found.isBlockDevice();
    if (!device && !found.isFile())
      throw failed(`${role} ${file} is neither a file nor a block device`, {
        hint: RIGHT_PATH,
        details: { path: file },
      });
    // Not access(2): that asks for the real user instead of the effective one.
    fs.closeSync(fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK));
    // A device has another inode, and other locks, in each VM's own /dev.
    const unwritten = inUse === true || (!device && held?.has(file) === true);
    if (!unwritten && (await isWrittenByQemu(file))) {
      throw failed(
        `${role} ${file} is in use: a running VM or another QEMU program has it open for writing`,
        {
          hint: 'give the VM instead, so that its disks are frozen first (chunkmount --vm=NAME), or shut it down',
          details: { path: file },
        },
      );
    }
    return { path: file, device, fileSize: device ? 0 : found.size, identity: `${found.dev}:${found.ino}` };
  } catch (error) {
    const code = systemCode(error);
    if (code === undefined) throw error;
    if (code === 'ENOENT' || code === 'ENOTDIR')
      throw failed(`${role} ${file} does not exist`, {
        hint: RIGHT_PATH,
        details: { path: file },
        cause: error,
      });
    const hint =
      code === 'EACCES' || code === 'EPERM'
        ? 'run this as root, or as a user who may read it'
        : 'look at dmesg for errors of the disk that it lies on';
    throw failed(`${role} ${file} cannot be read: ${code}`, { hint, details: { path: file }, cause: error });
  }
}

/** Refuses what QEMU could open but we must not or cannot read. */
function checkInfo(layer: ImageReference, info: ImageInfo): void {
  const { path: file, format } = layer;
  if (info.encrypted) {
    throw refused(
      file,
      'is encrypted, and its key is not ours to ask for',
      'back it up from inside the guest, or as a plain file',
    );
  }
  if (info.corrupt) {
    throw refused(
      file,
      'is marked as corrupt',
      `repair it while its VM is off: qemu-img check -r all -f ${format}`,
    );
  }
  for (const extent of info.extentFiles) {
    // A VMDK descriptor is a text that can name any file of the host.
    if (path.dirname(extent) === path.dirname(file)) continue;
    throw refused(
      file,
      `names a data file outside of its directory: ${extent}`,
      'move the parts of the image into one directory',
    );
  }
}

/** The data file that the header names. QEMU takes a relative one from its working directory, which nobody can know. */
async function dataFileOf(
  layer: ImageReference,
  info: ImageInfo,
  options: ImageOptions,
): Promise<ImageFile | undefined> {
  if (info.dataFile === undefined) return undefined;
  if (!path.isAbsolute(info.dataFile)) {
    const hint = `record its absolute path: qemu-img amend -f ${layer.format} -o data_file=/PATH/TO/DATA ${layer.path}`;
    throw refused(layer.path, `has a data file without an absolute path: ${info.dataFile}`, hint);
  }
  const reference = { path: info.dataFile, inUse: layer.inUse };
  const { identity: _, ...file } = await lookAt(reference, `the data file of ${layer.path},`, options);
  return file;
}

function backingOf(layer: ImageReference, info: ImageInfo): ImageReference | undefined {
  if (info.backing === undefined) return undefined;
  const { name, format } = info.backing;
  const rebase = (to: string) =>
    `if it is yours and right, record it: qemu-img rebase -u -f ${layer.format} -F raw -b ${to} ${layer.path} (or -F qcow2)`;
  if (name === '' || PROTOCOL.test(name)) {
    throw refused(
      layer.path,
      `has a backing file that is not a plain path: ${JSON.stringify(name)}`,
      rebase('/PATH/TO/BASE'),
    );
  }
  const below = path.isAbsolute(name) ? name : `${path.dirname(layer.path)}/${name}`;
  if (format === undefined) {
    throw refused(
      layer.path,
      `does not record the format of its backing file ${name}, and guessing it is unsafe`,
      rebase(name),
    );
  }
  if (!isImageFormat(format)) {
    throw refused(
      layer.path,
      `records a format of its backing file that cannot be read: ${JSON.stringify(format)}`,
      rebase(name),
    );
  }
  return { path: below, format };
}

/** What an NBD server exports: one layer, without a file. */
async function readExport(image: ImageReference, signal: AbortSignal | undefined): Promise<ImageChain> {
  const socket = { path: image.path, device: false, fileSize: 0 };
  const { virtualSize } = await imageInfo({ ...image, ...socket }, signal);
  return [{ ...image, ...socket, virtualSize }];
}

function isSameLayer(layer: ImageReference | undefined, other: ImageReference | undefined): boolean {
  if (layer === undefined || other === undefined) return layer === other;
  const [one, two] = [layer, other].map(({ path: file }) =>
    fs.statSync(file, { bigint: true, throwIfNoEntry: false }),
  );
  return layer.format === other.format && one !== undefined && one.dev === two?.dev && one.ino === two.ino;
}

/** libvirt gives a VM the layers that its definition has, if it has any, whatever the headers say. Throws if those are others. */
function checkBelow(layers: readonly ImageLayer[], below: readonly ImageReference[]): void {
  const count = Math.max(layers.length - 1, below.length);
  for (let index = 0; index < count; index++) {
    const [inHeader, used] = [layers[index + 1], below[index]];
    if (isSameLayer(inHeader, used)) continue;
    const nameOf = (layer: ImageReference | undefined) =>
      layer === undefined ? 'nothing' : `${layer.path} (${layer.format})`;
    throw refused(
      (layers[index] ?? below[index - 1]!).path,
      `lies on ${nameOf(inHeader)}, and its VM uses it on ${nameOf(used)}`,
      'make both alike while the VM is off: <backingStore> in its definition (virsh edit), or the header (qemu-img rebase -u)',
    );
  }
}

/**
 * Follows an image down to the last of its backing files, each read in the format that the one above recorded. Top first.
 * Throws when a file is missing, unreadable or being written, when a header is not to be trusted, and when the VM that has the image
 * open was told other backing files.
 */
export async function readChain(image: ImageReference, options: ImageOptions): Promise<ImageChain> {
  if (image.nbdExport !== undefined) return readExport(image, options.signal);
  const { below, ...top } = image;
  const layers: ImageLayer[] = [];
  const seen = new Set<string>();
  let role = 'the image';
  let next: ImageReference | undefined = top;
  while (next !== undefined) {
    const reference: ImageReference = next;
    if (layers.length === MAX_LAYERS) {
      throw refused(
        image.path,
        `has more than ${MAX_LAYERS} layers of backing files`,
        'shorten the chain: virsh blockpull or qemu-img rebase',
      );
    }
    const { identity, ...file } = await lookAt(reference, role, options);
    if (seen.has(identity))
      throw refused(
        image.path,
        `has itself among its backing files: ${reference.path}`,
        'set the right one: qemu-img rebase -u',
      );
    seen.add(identity);
    // A raw file has no header; all that is known of it has been seen.
    const info: ImageInfo | undefined =
      reference.format === 'raw' ? undefined : await imageInfo({ ...reference, ...file }, options.signal);
    if (info !== undefined) checkInfo(reference, info);
    if (reference.format === 'qcow2' && !file.device) checkQcow2Bounds(reference.path);
    const dataFile = info && (await dataFileOf(reference, info, options));
    layers.push({ ...reference, ...file, dataFile, virtualSize: info?.virtualSize });
    options.reporter.debug(`layer ${layers.length - 1}: ${reference.path} (${reference.format})`);
    next = info && backingOf(reference, info);
    role = `the backing file of ${reference.path},`;
  }
  if (below !== undefined) checkBelow(layers, below);
  return layers as [ImageLayer, ...ImageLayer[]];
}
