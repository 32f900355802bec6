import * as fs from 'node:fs';
import * as path from 'node:path';
import { messageOf } from '../../src/errors.js';
import { run } from '../../src/host/exec.js';

/**
 * Something a test cannot do without. Answers undefined when it is there, else a sentence that says what is lacking.
 * Must change nothing on the host.
 */
export type Requirement = () => string | undefined | Promise<string | undefined>;

const ROOT = path.resolve(import.meta.dirname, '../..');

/** Throws one error that lists everything that is lacking. To be awaited in `beforeAll`: a test that lacks something fails. */
export async function requireAll(...requirements: readonly Requirement[]): Promise<void> {
  const lacking: string[] = [];
  for (const requirement of requirements) {
    const sentence = await requirement();
    if (sentence !== undefined) lacking.push(`- ${sentence}`);
  }
  if (lacking.length === 0) return;
  throw new Error(
    `these tests cannot run:\n${lacking.join('\n')}\nscripts/test installs and starts what they need`,
  );
}

function find(program: string): string | undefined {
  const directories = (process.env.PATH ?? '').split(':').filter(Boolean);
  return directories.map((directory) => path.join(directory, program)).find((file) => fs.existsSync(file));
}

/** A program on PATH, and the Debian package that has it. */
export function program(name: string, debianPackage: string = name): Requirement {
  return () =>
    find(name) === undefined ? `${name} is not on PATH: apt-get install ${debianPackage}` : undefined;
}

export const root: Requirement = () => (process.geteuid?.() === 0 ? undefined : 'they must run as root');

/** /dev/fuse can be opened by this user. */
export const fuseDevice: Requirement = () => {
  try {
    fs.closeSync(fs.openSync('/dev/fuse', fs.constants.O_RDWR));
    return undefined;
  } catch (error) {
    return `/dev/fuse cannot be opened (${messageOf(error)}): load the fuse module, run as root`;
  }
};

/** The connection that tests use: LIBVIRT_DEFAULT_URI, or the system's QEMU driver. */
export function libvirtUri(): string {
  return process.env.LIBVIRT_DEFAULT_URI ?? 'qemu:///system';
}

export const libvirt: Requirement = async () => {
  try {
    await run('virsh', ['--connect', libvirtUri(), 'uri'], { timeoutMs: 20_000 });
    return undefined;
  } catch (error) {
    return `libvirt does not answer at ${libvirtUri()} (${messageOf(error)})`;
  }
};

/** All of src/ is compiled, and bundled after that: tests that start our processes run dist/, or what it is made of. */
export const build: Requirement = () => {
  const sources = fs.readdirSync(path.join(ROOT, 'src'), { recursive: true, encoding: 'utf8' });
  const bundled = modified('dist/cli.js');
  const stale = sources
    .filter((source) => /(?<!\.d)\.ts$/.test(source))
    .find((source) => {
      const compiled = modified(`build/${source.replace(/\.ts$/, '.js')}`);
      return compiled < modified(`src/${source}`) || bundled < compiled;
    });
  return stale === undefined ? undefined : `dist/ is older than src/${stale}: npm run build`;
};

/** Milliseconds; 0: there is no such file. */
function modified(file: string): number {
  return fs.statSync(path.join(ROOT, file), { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

/** The kernel's device-mapper and a volume group to make LVs in: what scripts/lvm-vm provides. */
export const deviceMapper: Requirement = () => {
  if (fs.existsSync('/sys/class/misc/device-mapper')) return undefined;
  return 'the kernel has no device-mapper: run them by scripts/lvm-vm';
};
