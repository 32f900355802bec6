import * as v from 'valibot';
import { ChunkmountError } from '../errors.js';
import { isChunkSize, MAX_CHUNK_COUNT } from './geometry.js';
import { LAYOUT_KINDS, type LayoutKind, layoutOf } from './layout.js';
import { isName, isTarget } from './names.js';
import { MANIFEST_NAME, SUMS_SUFFIX } from './paths.js';

/** Part of the tree format. */
export const MANIFEST_FORMAT = 'chunkmount-tree';
/** The newest that we know. */
export const MANIFEST_VERSION = 2;

/** More disks than any hypervisor gives a VM; keeps a hostile manifest from costing memory. */
export const MAX_DISKS = 4096;
const MAX_EXTRAS = 64;
/** What `MAX_DISKS` disks need, with room to spare. In UTF-16 units. */
const MAX_TEXT_LENGTH = 4 * 1024 * 1024;

/** What a frozen state is worth: a power cut's, a freeze's, one with the guest's memory, or that of a VM shut off. */
const CONSISTENCIES = ['crash', 'filesystem', 'memory', 'offline'] as const;

export const ZERO_CHUNKS = ['keep', 'skip'] as const;
/** Whether chunks of zeros have a file like all others, or none. */
export type ZeroChunks = (typeof ZERO_CHUNKS)[number];

/** One disk of a tree; sizes in bytes, so it is also the disk's Geometry. */
export interface ManifestDisk {
  readonly target: string;
  readonly size: number;
  readonly chunkSize: number;
  readonly chunkCount: number;
  /** Its directory's name. */
  readonly directory: string;
  readonly layout: LayoutKind;
  readonly zeroChunks: ZeroChunks;
  readonly hash: 'xxh64';
  /** The sums file's name: `vda.xxh64`. */
  readonly sums: string;
  /** QEMU's name of the format that the disk was in. */
  readonly sourceFormat: string;
  /** virtio, scsi, …; null for an image without a domain. */
  readonly bus: string | null;
}

/** Another file of a tree. `size` in bytes. */
export interface ManifestExtra {
  readonly file: string;
  readonly kind: 'nvram' | 'state';
  readonly size: number;
}

/** What a tree is: see the tree format in the design. */
export interface Manifest {
  readonly format: typeof MANIFEST_FORMAT;
  /** See `manifestVersion`. */
  readonly version: 1 | 2;
  readonly name: string;
  /** The domain's UUID; null for an image without a domain. */
  readonly uuid: string | null;
  /** ISO 8601, UTC. */
  readonly snapshotTime: string;
  readonly consistency: (typeof CONSISTENCIES)[number];
  readonly toolVersion: string;
  /** The domain XML's file name: `mail01.xml`; null if there is none. */
  readonly domainXml: string | null;
  readonly disks: readonly ManifestDisk[];
  readonly extras: readonly ManifestExtra[];
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const UTC_TIME = /^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z$/;
/** Names of formats and buses as QEMU and libvirt spell them. */
const WORD = /^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$/;
const VERSION_TEXT = /^[\x21-\x7e]{1,64}$/;

/** The regular expression alone would let February 30 pass. */
function isUtcTime(text: string): boolean {
  const time = Date.parse(text);
  return (
    UTC_TIME.test(text) &&
    !Number.isNaN(time) &&
    new Date(time).toISOString().slice(0, 19) === text.slice(0, 19)
  );
}

const bytes = v.pipe(v.number(), v.safeInteger('is no whole number of bytes'), v.minValue(0, 'is negative'));
const fileName = v.pipe(v.string(), v.check(isName, 'is no plain file name'));

const diskSchema = v.pipe(
  v.object({
    target: v.pipe(v.string(), v.check(isTarget, 'is no disk target')),
    size: bytes,
    chunkSize: v.pipe(v.number(), v.check(isChunkSize, 'is no power of two from 4 KiB to 16 MiB')),
    chunkCount: v.pipe(
      v.number(),
      v.safeInteger(),
      v.minValue(0),
      v.maxValue(MAX_CHUNK_COUNT, 'is more than 2^32'),
    ),
    // Version 1 has none of these three.
    directory: v.optional(v.string()),
    layout: v.optional(v.picklist(LAYOUT_KINDS), 'chunkmount'),
    zeroChunks: v.optional(v.picklist(ZERO_CHUNKS), 'keep'),
    hash: v.literal('xxh64'),
    sums: v.string(),
    sourceFormat: v.pipe(v.string(), v.regex(WORD, 'is no format name')),
    bus: v.nullable(v.pipe(v.string(), v.regex(WORD, 'is no bus name'))),
  }),
  v.check(
    (disk) => disk.chunkCount === Math.ceil(disk.size / disk.chunkSize),
    'size, chunkSize and chunkCount do not add up',
  ),
  v.check((disk) => disk.sums === disk.target + SUMS_SUFFIX, 'sums is not the name of its sums file'),
  v.transform((disk): ManifestDisk => ({ ...disk, directory: disk.directory ?? disk.target })),
  v.readonly(),
);

const extraSchema = v.pipe(
  v.object({ file: fileName, kind: v.picklist(['nvram', 'state']), size: bytes }),
  v.readonly(),
);

/** Keys that we do not know are ignored: a later manifest of the same version may say more. */
const manifestSchema = v.pipe(
  v.object({
    format: v.literal(MANIFEST_FORMAT),
    version: v.picklist([1, 2]),
    name: v.pipe(v.string(), v.check(isName, 'cannot be the name of a tree')),
    uuid: v.nullable(v.pipe(v.string(), v.regex(UUID, 'is no UUID'))),
    snapshotTime: v.pipe(v.string(), v.check(isUtcTime, 'is no time in UTC like 2024-05-31T22:15:00Z')),
    consistency: v.picklist(CONSISTENCIES),
    toolVersion: v.pipe(v.string(), v.regex(VERSION_TEXT, 'is no version')),
    domainXml: v.nullable(v.pipe(fileName, v.endsWith('.xml', 'does not end in .xml'))),
    disks: v.pipe(
      v.array(diskSchema),
      v.minLength(1, 'names no disk'),
      v.maxLength(MAX_DISKS, `names more than ${MAX_DISKS} disks`),
      v.readonly(),
    ),
    extras: v.pipe(
      v.array(extraSchema),
      v.maxLength(MAX_EXTRAS, `names more than ${MAX_EXTRAS} files`),
      v.readonly(),
    ),
  }),
  v.readonly(),
  v.check((manifest) => areDistinct(topLevelNames(manifest)), 'two of its entries have the same name'),
  v.check(
    ({ version, disks }) => version === manifestVersion(disks),
    'its version is not that of its layout and zeroChunks',
  ),
  v.check(
    ({ name, disks }) =>
      disks.every(
        ({ directory, layout, target }) => directory === layoutOf(layout).diskDirectory(name, target),
      ),
    "a disk's directory is not called as its layout has it",
  ),
);

/** The names at the top of the tree, in the manifest's order. */
export function topLevelNames(manifest: Pick<Manifest, 'domainXml' | 'disks' | 'extras'>): string[] {
  return [
    MANIFEST_NAME,
    ...(manifest.domainXml === null ? [] : [manifest.domainXml]),
    ...manifest.disks.flatMap((disk) => [disk.directory, disk.sums]),
    ...manifest.extras.map((extra) => extra.file),
  ];
}

function areDistinct(names: readonly string[]): boolean {
  return new Set(names).size === names.length;
}

/**
 * The version that a tree's manifest must have: readers of version 1 would look for its chunks at other places, or take chunks of zeros
 * for missing ones, so they must refuse it. A tree that they can read stays version 1.
 */
export function manifestVersion(
  disks: readonly Pick<ManifestDisk, 'layout' | 'zeroChunks'>[],
): Manifest['version'] {
  return disks.every(({ layout, zeroChunks }) => layout === 'chunkmount' && zeroChunks === 'keep') ? 1 : 2;
}

function refuse(file: string, why: string, hint: string, cause?: unknown): ChunkmountError {
  return new ChunkmountError('integrity', `${file} ${why}`, { hint, details: { file }, cause });
}

const DAMAGED_HINT = 'take manifest.json from another copy of this backup';

/** Looked at first, so that a newer format is called that and not a damaged manifest. */
const headSchema = v.object({
  format: v.literal(MANIFEST_FORMAT),
  version: v.pipe(v.number(), v.safeInteger()),
});

function checkVersion(value: unknown, file: string): void {
  const head = v.safeParse(headSchema, value);
  if (!head.success)
    throw refuse(
      file,
      'is not the manifest of a chunkmount tree',
      'give the directory that holds manifest.json',
    );
  const { version } = head.output;
  if (version > MANIFEST_VERSION) {
    throw refuse(
      file,
      `has format version ${version}, this chunkmount knows ${MANIFEST_VERSION}`,
      'install a newer chunkmount',
    );
  }
  if (version < 1) throw refuse(file, `has format version ${version}, which never existed`, DAMAGED_HINT);
}

/**
 * Parses a manifest, which is untrusted input: afterwards every name in it is a plain file name or target, no two are the same, and
 * sizes and counts add up. `file` is what errors call it. Throws ChunkmountError of kind `integrity`.
 */
export function parseManifest(text: string, file: string = MANIFEST_NAME): Manifest {
  if (text.length > MAX_TEXT_LENGTH) throw refuse(file, 'is too large to be a manifest', DAMAGED_HINT);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw refuse(file, 'is not valid JSON', DAMAGED_HINT, error);
  }
  checkVersion(value, file);
  const result = v.safeParse(manifestSchema, value, { abortEarly: true, message: describeIssue });
  if (result.success) return result.output;
  const [issue] = result.issues;
  const at = v.getDotPath(issue);
  throw refuse(file, `is damaged: ${at === null ? '' : `${at}: `}${issue.message}`, DAMAGED_HINT);
}

/** valibot's own messages quote what they got, which does not belong on a terminal. */
function describeIssue(issue: { readonly expected: string | null }): string {
  return issue.expected === null ? 'is not valid' : `is not ${issue.expected}`;
}

/** The manifest's text: keys in the order of the tree format, two spaces of indentation, a newline at the end. */
export function formatManifest(manifest: Manifest): string {
  const { format, version, name, uuid, snapshotTime, consistency, toolVersion, domainXml } = manifest;
  const disks = manifest.disks.map((disk) => {
    const { target, size, chunkSize, chunkCount, directory, layout, zeroChunks } = disk;
    const { hash, sums, sourceFormat, bus } = disk;
    const shape = version === 1 ? {} : { directory, layout, zeroChunks };
    return { target, size, chunkSize, chunkCount, ...shape, hash, sums, sourceFormat, bus };
  });
  const extras = manifest.extras.map(({ file, kind, size }) => ({ file, kind, size }));
  const ordered = {
    format,
    version,
    name,
    uuid,
    snapshotTime,
    consistency,
    toolVersion,
    domainXml,
    disks,
    extras,
  };
  return `${JSON.stringify(ordered, null, 2)}\n`;
}
