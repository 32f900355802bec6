export const MANIFEST_NAME = 'manifest.json';
export const SUMS_SUFFIX = '.xxh64';
/** The xattr that carries a chunk's hash as 16 lower-case hex digits. */
export const HASH_XATTR = 'user.chunkmount.xxh64';

/** 16 lower-case hex digits of a 64-bit hash given as two 32-bit halves. */
export function formatHash(high: number, low: number): string {
  return (high >>> 0).toString(16).padStart(8, '0') + (low >>> 0).toString(16).padStart(8, '0');
}
