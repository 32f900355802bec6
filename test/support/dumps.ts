import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { loadDomain } from '../../src/libvirt/load-domain.js';
import type { TestLibvirt } from './libvirt.js';

/** What `sha256sum -c` says about a dump's directory. */
export async function checkSums(directory: string, sums: string): Promise<void> {
  await execa('sha256sum', ['--quiet', '--strict', '-c', sums], { cwd: directory });
}

export function sha256(content: Uint8Array): string {
  return createHash('sha256').update(content).digest('hex');
}

/** The disk's bytes by QEMU's own account, of an image that may be in use. */
export async function diskBytes(image: string, format: string): Promise<Buffer> {
  const raw = `${image}.content`;
  await execa('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', image, raw]);
  const content = fs.readFileSync(raw);
  fs.rmSync(raw);
  return content;
}

/** What a program makes of a compressed file. */
export async function decompressed(program: string, file: string): Promise<Buffer> {
  const { stdout } = await execa(program, ['-d', '-c'], {
    inputFile: file,
    encoding: 'buffer',
    maxBuffer: 2 ** 30,
  });
  return Buffer.from(stdout);
}

/** The images that a domain runs on. */
export async function imagesOf(libvirt: TestLibvirt, name: string): Promise<(string | undefined)[]> {
  return (await loadDomain(libvirt.virsh, name)).disks.map((disk) => disk.path);
}

/** Makes a program of that name, a shell script, and returns a PATH on which it comes first. */
export function programFirst(directory: string, name: string, script: string): string {
  fs.mkdirSync(directory, { recursive: true });
  fs.writeFileSync(path.join(directory, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  return `${directory}:${process.env.PATH}`;
}

/** Name to content of all files of a directory. */
export function filesIn(directory: string): Record<string, string> {
  const names = fs.existsSync(directory) ? fs.readdirSync(directory).sort() : [];
  return Object.fromEntries(names.map((name) => [name, sha256(fs.readFileSync(path.join(directory, name)))]));
}
