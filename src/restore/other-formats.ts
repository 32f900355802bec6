import * as fs from 'node:fs';

/** How images that are not raw begin. See docs/interop/ and the first lines of the drivers in block/ of QEMU. */
const BEGINNINGS: readonly { readonly format: string; readonly at: number; readonly bytes: Buffer }[] = [
  { format: 'qcow2', at: 0, bytes: Buffer.from([0x51, 0x46, 0x49, 0xfb]) },
  { format: 'VMDK', at: 0, bytes: Buffer.from('KDMV') },
  { format: 'VMDK', at: 0, bytes: Buffer.from('COWD') },
  { format: 'VMDK', at: 0, bytes: Buffer.from('# Disk DescriptorFile') },
  { format: 'VDI', at: 0x40, bytes: Buffer.from([0x7f, 0x10, 0xda, 0xbe]) },
  { format: 'VHDX', at: 0, bytes: Buffer.from('vhdxfile') },
  { format: 'VHD', at: 0, bytes: Buffer.from('conectix') },
  { format: 'QED', at: 0, bytes: Buffer.from('QED\0') },
];

/**
 * The name of the format that a file or device seems to have; undefined: raw, for all that can be told. A guest can write any of these
 * into its raw disk: good enough for a question back, never for how to read an image.
 */
export function looksLike(fd: number): string | undefined {
  const head = Buffer.alloc(Math.max(...BEGINNINGS.map(({ at, bytes }) => at + bytes.byteLength)));
  fs.readSync(fd, head, 0, head.byteLength, 0);
  return BEGINNINGS.find(({ at, bytes }) => head.subarray(at, at + bytes.byteLength).equals(bytes))?.format;
}
