import { execa } from 'execa';
import { isWrittenByQemu } from '../../src/image/image-lock.js';
import { eventually } from './libvirt.js';

/** Does `work` while a program that is none of ours has the image open for writing, as QEMU has the disks of a VM. */
export async function whileOpenForWriting(
  { path, format }: { readonly path: string; readonly format: string },
  work: () => Promise<void>,
): Promise<void> {
  const program = execa('qemu-io', ['-f', format, path], { stdin: 'pipe' });
  try {
    await eventually(() => isWrittenByQemu(path));
    await work();
  } finally {
    program.stdin.end();
    await program;
  }
}
