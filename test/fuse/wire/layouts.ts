/**
 * The structures of include/uapi/linux/fuse.h (7.45), field by field as they stand there: what the wire format is tested
 * against, written down a second time on purpose.
 */
type FieldType = 'u16' | 'u32' | 'i32' | 'u64';
export type Layout = readonly (readonly [name: string, type: FieldType])[];
/** 64-bit fields are bigints. */
export type Fields = Record<string, number | bigint>;

const LENGTHS: Readonly<Record<FieldType, number>> = { u16: 2, u32: 4, i32: 4, u64: 8 };

function repeat(name: string, type: FieldType, count: number): Layout {
  return Array.from({ length: count }, (_, i) => [`${name}${i}`, type] as const);
}

export const IN_HEADER: Layout = [
  ['len', 'u32'],
  ['opcode', 'u32'],
  ['unique', 'u64'],
  ['nodeid', 'u64'],
  ['uid', 'u32'],
  ['gid', 'u32'],
  ['pid', 'u32'],
  ['total_extlen', 'u16'],
  ['padding', 'u16'],
];

export const OUT_HEADER: Layout = [
  ['len', 'u32'],
  ['error', 'i32'],
  ['unique', 'u64'],
];

export const ATTR: Layout = [
  ['ino', 'u64'],
  ['size', 'u64'],
  ['blocks', 'u64'],
  ['atime', 'u64'],
  ['mtime', 'u64'],
  ['ctime', 'u64'],
  ['atimensec', 'u32'],
  ['mtimensec', 'u32'],
  ['ctimensec', 'u32'],
  ['mode', 'u32'],
  ['nlink', 'u32'],
  ['uid', 'u32'],
  ['gid', 'u32'],
  ['rdev', 'u32'],
  ['blksize', 'u32'],
  ['flags', 'u32'],
];

export const ENTRY_OUT: Layout = [
  ['nodeid', 'u64'],
  ['generation', 'u64'],
  ['entry_valid', 'u64'],
  ['attr_valid', 'u64'],
  ['entry_valid_nsec', 'u32'],
  ['attr_valid_nsec', 'u32'],
  ...ATTR,
];

export const ATTR_OUT: Layout = [
  ['attr_valid', 'u64'],
  ['attr_valid_nsec', 'u32'],
  ['dummy', 'u32'],
  ...ATTR,
];

/** Up to 7.35. */
export const OLD_INIT_IN: Layout = [
  ['major', 'u32'],
  ['minor', 'u32'],
  ['max_readahead', 'u32'],
  ['flags', 'u32'],
];

export const INIT_IN: Layout = [...OLD_INIT_IN, ['flags2', 'u32'], ...repeat('unused', 'u32', 11)];

export const INIT_OUT: Layout = [
  ['major', 'u32'],
  ['minor', 'u32'],
  ['max_readahead', 'u32'],
  ['flags', 'u32'],
  ['max_background', 'u16'],
  ['congestion_threshold', 'u16'],
  ['max_write', 'u32'],
  ['time_gran', 'u32'],
  ['max_pages', 'u16'],
  ['map_alignment', 'u16'],
  ['flags2', 'u32'],
  ['max_stack_depth', 'u32'],
  ['request_timeout', 'u16'],
  ...repeat('unused', 'u16', 11),
];

export const GETATTR_IN: Layout = [
  ['getattr_flags', 'u32'],
  ['dummy', 'u32'],
  ['fh', 'u64'],
];

export const OPEN_IN: Layout = [
  ['flags', 'u32'],
  ['open_flags', 'u32'],
];

export const OPEN_OUT: Layout = [
  ['fh', 'u64'],
  ['open_flags', 'u32'],
  ['backing_id', 'i32'],
];

/** Of READ, READDIR and READDIRPLUS. */
export const READ_IN: Layout = [
  ['fh', 'u64'],
  ['offset', 'u64'],
  ['size', 'u32'],
  ['read_flags', 'u32'],
  ['lock_owner', 'u64'],
  ['flags', 'u32'],
  ['padding', 'u32'],
];

/** The name follows, padded to a multiple of 8. */
export const DIRENT: Layout = [
  ['ino', 'u64'],
  ['off', 'u64'],
  ['namelen', 'u32'],
  ['type', 'u32'],
];

export const STATFS_OUT: Layout = [
  ['blocks', 'u64'],
  ['bfree', 'u64'],
  ['bavail', 'u64'],
  ['files', 'u64'],
  ['ffree', 'u64'],
  ['bsize', 'u32'],
  ['namelen', 'u32'],
  ['frsize', 'u32'],
  ['padding', 'u32'],
  ...repeat('spare', 'u32', 6),
];

/** The name follows, for GETXATTR. */
export const GETXATTR_IN: Layout = [
  ['size', 'u32'],
  ['padding', 'u32'],
];

export const GETXATTR_OUT: Layout = [
  ['size', 'u32'],
  ['padding', 'u32'],
];

export const LSEEK_IN: Layout = [
  ['fh', 'u64'],
  ['offset', 'u64'],
  ['whence', 'u32'],
  ['padding', 'u32'],
];

export const LSEEK_OUT: Layout = [['offset', 'u64']];

export function lengthOf(layout: Layout): number {
  return layout.reduce((sum, [, type]) => sum + LENGTHS[type], 0);
}

/** The structure's bytes; fields that are not given are 0. Throws for a field that the structure does not have. */
export function encode(layout: Layout, fields: Fields): Buffer {
  const bytes = Buffer.alloc(lengthOf(layout));
  const left = new Set(Object.keys(fields));
  let at = 0;
  for (const [name, type] of layout) {
    const value = fields[name] ?? 0;
    left.delete(name);
    if (type === 'u64') bytes.writeBigUInt64LE(BigInt(value), at);
    else if (type === 'i32') bytes.writeInt32LE(Number(value), at);
    else if (type === 'u32') bytes.writeUInt32LE(Number(value), at);
    else bytes.writeUInt16LE(Number(value), at);
    at += LENGTHS[type];
  }
  if (left.size > 0) throw new Error(`no such fields: ${[...left].join(', ')}`);
  return bytes;
}

/** The fields of the structure at `at`. Throws if it does not fit in. */
export function decode(bytes: Buffer, layout: Layout, at = 0): Fields {
  const fields: Fields = {};
  let position = at;
  for (const [name, type] of layout) {
    if (type === 'u64') fields[name] = bytes.readBigUInt64LE(position);
    else if (type === 'i32') fields[name] = bytes.readInt32LE(position);
    else if (type === 'u32') fields[name] = bytes.readUInt32LE(position);
    else fields[name] = bytes.readUInt16LE(position);
    position += LENGTHS[type];
  }
  return fields;
}

/** All fields 0 but these. */
export function zeros(layout: Layout, fields: Fields = {}): Fields {
  return decode(encode(layout, fields), layout);
}
