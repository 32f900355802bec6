import { usage } from '../errors.js';

/** How much room a thick LVM snapshot gets for what the guest changes meanwhile. */
export type SnapshotSize =
  | { readonly kind: 'bytes'; readonly bytes: number }
  /** Of the origin's size. */
  | { readonly kind: 'percent'; readonly percent: number };

/** As virt-backup had it. */
export const DEFAULT_SNAPSHOT_SIZE: SnapshotSize = { kind: 'bytes', bytes: 5 * 2 ** 30 };

const UNITS: Readonly<Record<string, number>> = { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** Reads `5G`, `500M`, `20%`, `100%ORIGIN`. Throws a usage error for anything else. */
export function parseSnapshotSize(text: string): SnapshotSize {
  const percent = /^(\d{1,3})%(?:ORIGIN)?$/i.exec(text)?.[1];
  if (percent !== undefined && Number(percent) >= 1 && Number(percent) <= 100) {
    return { kind: 'percent', percent: Number(percent) };
  }
  const [, digits, unit] = /^(\d{1,9})([KMGT])$/i.exec(text) ?? [];
  const bytes = Number(digits) * (UNITS[unit?.toUpperCase() ?? ''] ?? Number.NaN);
  if (bytes > 0 && Number.isSafeInteger(bytes)) return { kind: 'bytes', bytes };
  throw usage(`${JSON.stringify(text)} is no size of a snapshot`, {
    hint: 'for example --snapsize=5G, or --snapsize=20% of the volume',
  });
}

export interface SnapshotOrigin {
  /** In bytes. */
  readonly size: number;
  /** In bytes; LVM gives space in such units. */
  readonly extentSize: number;
  /** In bytes; what the guest changes is kept in such units. */
  readonly chunkSize: number;
}

/** What the kernel notes of each chunk that was changed: struct disk_exception in drivers/md/dm-snap-persistent.c. */
const EXCEPTION_BYTES = 16;

/** Extents that a snapshot can fill at most: see cow_max_extents in lib/metadata/snapshot_manip.c of LVM. */
function mostExtents({ size, extentSize, chunkSize }: SnapshotOrigin): number {
  const chunksOf = (bytes: number) => Math.ceil(bytes / chunkSize);
  const header = chunkSize;
  const tables = chunksOf(chunksOf(size) * EXCEPTION_BYTES) * chunkSize;
  return Math.ceil((header + tables + size) / extentSize);
}

/** Bytes that a snapshot takes from its volume group. */
export function bytesOf(size: SnapshotSize, origin: SnapshotOrigin): number {
  const most = mostExtents(origin);
  const extents =
    size.kind === 'bytes'
      ? Math.min(Math.ceil(size.bytes / origin.extentSize), most)
      : Math.ceil((most * size.percent) / 100);
  return extents * origin.extentSize;
}

/** lvcreate's arguments. It reduces by itself what could never be filled. */
export function sizeArguments(size: SnapshotSize): string[] {
  return size.kind === 'bytes' ? ['--size', `${size.bytes}b`] : ['--extents', `${size.percent}%ORIGIN`];
}
