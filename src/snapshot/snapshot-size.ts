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

/** Bytes that a snapshot of an origin of `originSize` bytes takes from its volume group at most. */
export function bytesOf(size: SnapshotSize, originSize: number): number {
  return size.kind === 'bytes'
    ? Math.min(size.bytes, originSize)
    : Math.ceil((originSize * size.percent) / 100);
}

/** lvcreate's arguments. It reduces by itself what could never be filled. */
export function sizeArguments(size: SnapshotSize): string[] {
  return size.kind === 'bytes' ? ['--size', `${size.bytes}b`] : ['--extents', `${size.percent}%ORIGIN`];
}
