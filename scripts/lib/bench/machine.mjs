import * as os from 'node:os';
import { run } from './run.mjs';

async function firstLine(program, args) {
  return (await run(program, args)).split('\n')[0].trim();
}

/** A line on what the figures were measured on. */
export async function describeMachine(directory) {
  const cpus = os.cpus();
  const memory = Math.round(os.totalmem() / 1024 ** 3);
  const fileSystem = await firstLine('findmnt', ['--noheadings', '--output=FSTYPE', '--target', directory]);
  const qemu = /version ([0-9.]+)/.exec(await firstLine('qemu-img', ['--version']))?.[1];
  const rsync = /version ([0-9.]+)/.exec(await firstLine('rsync', ['--version']))?.[1];
  return (
    `Machine: ${cpus[0].model.trim()}, ${cpus.length} cores, ${memory} GiB of memory, images on ${fileSystem}; ` +
    `Linux ${os.release().replace(/-.*/, '')}, Node ${process.versions.node}, QEMU ${qemu}, rsync ${rsync}.`
  );
}
