import { randomUUID } from 'node:crypto';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { run, spawnDetached } from '../../src/host/exec.js';
import {
  identify,
  type ProcessIdentity,
  signalProcess,
  waitForEnd,
} from '../../src/host/process-identity.js';
import { loadDescription } from '../../src/libvirt/load-domain.js';
import { Virsh } from '../../src/libvirt/virsh.js';
import { attribute, child, children, escapeXml, parseXml, rootOf } from '../../src/libvirt/xml.js';
import { program, requireAll, root } from './requirements.js';

export interface TestDisk {
  readonly target: string;
  readonly path: string;
  readonly format: string;
  readonly type?: 'file' | 'block';
  /** `virtio` unless given. A disk on `scsi` is unplugged without the guest's help. */
  readonly bus?: 'virtio' | 'scsi';
  /** What the guest discards is discarded in the image. */
  readonly discard?: boolean;
  /** More elements for the `<disk>`, as XML. */
  readonly extra?: string;
}

/** Bytes of a disk that all have one value. */
export interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly pattern: number;
}

export interface TestDomain {
  readonly name: string;
  readonly uuid: string;
}

/** The directories of a libvirtd, and the private ones that it sees there instead. */
const PRIVATE = {
  etc: '/etc/libvirt',
  run: '/run/libvirt',
  lib: '/var/lib/libvirt',
  log: '/var/log/libvirt',
};

/** What libvirt found out about QEMU, which takes it seconds, and a minute in the machine of scripts/lvm-vm: kept for all tests. */
const CACHE = path.resolve(import.meta.dirname, '../../node_modules/.cache/libvirt');

/** QEMU logs to plain files: no virtlogd is needed. */
const QEMU_CONF = `security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
remember_owner = 0
`;

const FIRMWARE = 'halt.rom';

/** A BIOS that halts the processor with its first instruction: a real one keeps it busy looking for something to boot. */
function haltingFirmware(): Buffer {
  const rom = Buffer.alloc(65536, 0xf4);
  // cli; hlt; jmp back, where an x86 begins: 16 bytes below the end.
  Buffer.from([0xfa, 0xf4, 0xeb, 0xfd]).copy(rom, 65536 - 16);
  return rom;
}

/** Makes the private directories appear in place of the system's, then becomes libvirtd. Arguments: directory, cache. */
const ENTER = `set -e
for pair in ${Object.entries(PRIVATE)
  .map(([name, target]) => `${name}:${target}`)
  .join(' ')}; do mount --bind "$1/\${pair%%:*}" "\${pair#*:}"; done
mount --bind "$2" /var/cache/libvirt
exec libvirtd --config "$1/etc/libvirtd.conf" --pid-file "$1/libvirtd.pid"`;

/** In the machine of scripts/lvm-vm everything takes several times as long. */
const START_TIMEOUT_MS = 180_000;

/**
 * A libvirtd of our own: its configuration, state and sockets are in a temporary directory, so that tests neither see
 * nor touch the machine's VMs, and several can run at once. Needs root, `libvirtd` and QEMU for x86.
 */
export class TestLibvirt {
  #daemon: ProcessIdentity | undefined;

  private constructor(readonly directory: string) {}

  /** For `--connect` and LIBVIRT_DEFAULT_URI. */
  get uri(): string {
    return `qemu:///system?socket=${path.join(this.directory, 'sock', 'libvirt-sock')}`;
  }

  get virsh(): Virsh {
    return new Virsh({ connect: this.uri });
  }

  /** `user`: the one whom QEMU runs as. */
  static async start({ user = 'root' }: { user?: string } = {}): Promise<TestLibvirt> {
    await requireAll(
      root,
      program('libvirtd', 'libvirt-daemon-system'),
      program('virsh', 'libvirt-clients'),
      program('qemu-system-x86_64', 'qemu-system-x86'),
      program('unshare', 'util-linux'),
    );
    const libvirt = new TestLibvirt(fs.mkdtempSync(path.join(os.tmpdir(), 'cm-libvirt-')));
    // QEMU must get at the images, whoever it runs as.
    fs.chmodSync(libvirt.directory, 0o755);
    libvirt.#prepare(user);
    try {
      await libvirt.startDaemon();
    } catch (error) {
      await libvirt.close();
      throw error;
    }
    return libvirt;
  }

  #prepare(user: string): void {
    for (const [name, target] of Object.entries(PRIVATE)) {
      fs.mkdirSync(path.join(this.directory, name));
      fs.mkdirSync(target, { recursive: true });
    }
    for (const cache of [CACHE, '/var/cache/libvirt']) fs.mkdirSync(cache, { recursive: true });
    fs.mkdirSync(path.join(this.directory, 'sock'));
    fs.mkdirSync(path.join(this.directory, 'etc', 'qemu'));
    fs.writeFileSync(
      path.join(this.directory, 'etc', 'qemu.conf'),
      `user = "${user}"\ngroup = "root"\n${QEMU_CONF}`,
    );
    fs.writeFileSync(path.join(this.directory, FIRMWARE), haltingFirmware());
    const sockets = `unix_sock_dir = "${path.join(this.directory, 'sock')}"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n`;
    // Each is a host of its own: libvirt migrates nothing from a host to itself.
    const host = `host_uuid = "${randomUUID()}"\n`;
    fs.writeFileSync(path.join(this.directory, 'etc', 'libvirtd.conf'), sockets + host);
  }

  /** Starts libvirtd (again) and waits until it answers. */
  async startDaemon(): Promise<void> {
    const logFile = path.join(this.directory, 'libvirtd.log');
    const enter = ['--mount', '--propagation', 'slave', 'sh', '-c', ENTER, 'sh', this.directory, CACHE];
    const daemon = identify(await spawnDetached('unshare', enter, { logFile }));
    this.#daemon = daemon;
    const deadline = Date.now() + START_TIMEOUT_MS;
    for (;;) {
      try {
        await this.virsh.list();
        return;
      } catch (error) {
        const gone = daemon === undefined || (await waitForEnd(daemon, 50));
        if (gone || Date.now() > deadline) {
          throw new Error(`libvirtd did not start:\n${fs.readFileSync(logFile, 'utf8')}`, { cause: error });
        }
      }
    }
  }

  /** Ends libvirtd alone; domains go on. */
  async stopDaemon(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    if (this.#daemon === undefined) return;
    signalProcess(this.#daemon, signal);
    if (!(await waitForEnd(this.#daemon, 60_000))) throw new Error('libvirtd does not end');
    this.#daemon = undefined;
  }

  /** Defines a domain without an operating system. It is started unless told otherwise; `transient` ones always. */
  async define(
    name: string,
    disks: readonly TestDisk[],
    options: { start?: boolean; transient?: boolean; devices?: string; uuid?: string } = {},
  ): Promise<TestDomain> {
    const xml = domainXml(name, disks, { ...options, firmware: path.join(this.directory, FIRMWARE) });
    const file = path.join(this.directory, `${name}.xml`);
    fs.writeFileSync(file, xml);
    if (options.transient === true) await this.virsh.call('create', ['--file', file], START_TIMEOUT_MS);
    else await this.virsh.call('define', ['--file', file], START_TIMEOUT_MS);
    if (options.transient !== true && options.start !== false) await this.startDomain(name);
    return this.virsh.find(name);
  }

  /** Starts a domain that is defined, by name or UUID. */
  async startDomain(domain: string): Promise<void> {
    await this.virsh.call('start', ['--domain', domain], START_TIMEOUT_MS);
  }

  /** The QEMU process of a running domain. */
  qemu(domain: TestDomain): ProcessIdentity {
    const pid = Number(
      fs.readFileSync(path.join(this.directory, 'run', 'qemu', `${domain.name}.pid`), 'utf8'),
    );
    const identity = identify(pid);
    if (identity === undefined) throw new Error(`the QEMU process of ${domain.name} is gone`);
    return identity;
  }

  /** Ends QEMU as a crash would, and waits until libvirt has noticed. */
  async killQemu(domain: TestDomain): Promise<void> {
    const qemu = this.qemu(domain);
    signalProcess(qemu, 'SIGKILL');
    await waitForEnd(qemu, 60_000);
    await eventually(async () => !(await this.virsh.list('active')).some(({ uuid }) => uuid === domain.uuid));
  }

  /**
   * Writes as the guest would: through QEMU's own block layer, to whatever the disk's image is now. Throws unless what
   * was written can be read from there.
   */
  async guestWrite(domain: TestDomain, target: string, write: Extent): Promise<void> {
    const alias = await this.#alias(domain, target);
    await this.#qemuIo(domain, alias, `write -P ${write.pattern} ${write.offset} ${write.length}`);
    await this.#verify(domain, target, alias, write);
  }

  /** Discards as the guest would. */
  async guestDiscard(domain: TestDomain, target: string, range: Omit<Extent, 'pattern'>): Promise<void> {
    await this.#qemuIo(domain, await this.#alias(domain, target), `discard ${range.offset} ${range.length}`);
  }

  /** Makes QEMU write what it has in memory of the image. */
  async guestFlush(domain: TestDomain, target: string): Promise<void> {
    await this.#qemuIo(domain, await this.#alias(domain, target), 'flush');
  }

  /** Throws unless the guest would read `pattern` there. */
  async guestVerify(domain: TestDomain, target: string, read: Extent): Promise<void> {
    await this.#verify(domain, target, await this.#alias(domain, target), read);
  }

  async #verify(domain: TestDomain, target: string, alias: string, read: Extent): Promise<void> {
    // QEMU prints what qemu-io said into its own log, late; so the image that the guest uses now is looked at instead.
    await this.#qemuIo(domain, alias, 'flush');
    const { disks } = await loadDescription(this.virsh, domain.uuid);
    const disk = disks.find((one) => one.target === target);
    if (!(await hasPattern(disk!.path!, disk!.format!, read))) {
      throw new Error(
        `the guest does not read ${read.pattern} at ${read.offset} of ${target} (${disk?.path})`,
      );
    }
  }

  /** QEMU's name of a disk. */
  async #alias(domain: TestDomain, target: string): Promise<string> {
    const root = rootOf(parseXml(await this.virsh.dumpXml(domain.uuid), 'domain'));
    const disks = children(child(root, 'devices')!, 'disk');
    const disk = disks.find((one) => attribute(child(one, 'target'), 'dev') === target);
    return attribute(child(disk, 'alias'), 'name')!;
  }

  /** Every process takes its time in the machine of scripts/lvm-vm, so virsh is called no more than needed. */
  async #qemuIo(domain: TestDomain, alias: string, command: string): Promise<void> {
    const device = alias.startsWith('virtio') ? `${alias}/virtio-backend` : alias;
    const hmp = `qemu-io -d /machine/peripheral/${device} "${command}"`;
    const said = await this.virsh.call('qemu-monitor-command', [
      '--domain',
      domain.uuid,
      '--hmp',
      '--cmd',
      hmp,
    ]);
    if (said.trim() !== '') throw new Error(`${command} on ${alias} of ${domain.name}: ${said}`);
  }

  /** Ends a domain, however it runs, and forgets it. */
  async remove(domain: TestDomain): Promise<void> {
    const state = path.join(this.directory, 'run', 'qemu');
    if (fs.existsSync(path.join(state, `${domain.name}.pid`))) await this.killQemu(domain);
    if ((await this.virsh.list()).some(({ uuid }) => uuid === domain.uuid)) {
      await this.virsh.call('undefine', ['--domain', domain.uuid, '--managed-save']);
    }
  }

  /** Ends all domains and libvirtd, and removes every trace. */
  async close(): Promise<void> {
    this.#killQemus();
    await this.stopDaemon();
    fs.rmSync(this.directory, { recursive: true, force: true });
  }

  /** `virsh destroy` waits more than a second for each. */
  #killQemus(): void {
    const state = path.join(this.directory, 'run', 'qemu');
    const files = fs.existsSync(state) ? fs.readdirSync(state).filter((file) => file.endsWith('.pid')) : [];
    for (const file of files) {
      const identity = identify(Number(fs.readFileSync(path.join(state, file), 'utf8')));
      const commandLine =
        identity === undefined ? '' : fs.readFileSync(`/proc/${identity.pid}/cmdline`, 'utf8');
      if (identity !== undefined && commandLine.includes(this.directory)) signalProcess(identity, 'SIGKILL');
    }
  }
}

function diskXml(disk: TestDisk): string {
  const type = disk.type ?? 'file';
  const attributeName = type === 'file' ? 'file' : 'dev';
  return `<disk type='${type}' device='disk'><driver name='qemu' type='${disk.format}'${disk.discard === true ? " discard='unmap'" : ''}/>
<source ${attributeName}='${escapeXml(disk.path)}'/><target dev='${disk.target}' bus='${disk.bus ?? 'virtio'}'/>${disk.extra ?? ''}</disk>`;
}

function domainXml(
  name: string,
  disks: readonly TestDisk[],
  { devices = '', uuid, firmware }: { devices?: string; uuid?: string; firmware: string },
): string {
  return `<domain type='qemu'><name>${escapeXml(name)}</name>${uuid === undefined ? '' : `<uuid>${uuid}</uuid>`}<memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><loader type='rom'>${escapeXml(firmware)}</loader></os><on_crash>destroy</on_crash>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
${disks.map(diskXml).join('\n')}
${devices}</devices></domain>`;
}

/** Waits until `condition` holds, at most a minute. */
export async function eventually(condition: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error('waited a minute in vain');
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** A signal that comes as soon as there is that file, or after a minute. */
export function signalWhenThere(file: string): AbortSignal {
  const abort = new AbortController();
  const there = eventually(async () => fs.existsSync(file));
  void there.catch(() => {}).then(() => abort.abort());
  return abort.signal;
}

/** Makes an image of `size` bytes filled with `pattern`. */
export async function makeImage(file: string, format: string, size: number, pattern?: number): Promise<void> {
  await run('qemu-img', ['create', '-q', '-f', format, file, String(size)]);
  if (pattern !== undefined) await writePattern(file, format, { offset: 0, length: size, pattern });
}

/** The disks of a VM in a directory that is there: vda is qcow2, vdb raw. Each byte is `pattern`. */
export async function makeTwoDisks(
  directory: string,
  { pattern = 0x11, size = 4 * 1024 * 1024 } = {},
): Promise<TestDisk[]> {
  const disks = [
    { target: 'vda', path: path.join(directory, 'vda.qcow2'), format: 'qcow2' },
    { target: 'vdb', path: path.join(directory, 'vdb.img'), format: 'raw' },
  ];
  for (const disk of disks) await makeImage(disk.path, disk.format, size, pattern);
  return disks;
}

/** Writes into an image that no VM uses. */
export async function writePattern(file: string, format: string, write: Extent): Promise<void> {
  await run('qemu-io', [
    '-f',
    format,
    '-c',
    `write -P ${write.pattern} ${write.offset} ${write.length}`,
    file,
  ]);
}

/** Whether an image that may be in use as a read-only base holds `pattern` there. */
export async function hasPattern(file: string, format: string, read: Extent): Promise<boolean> {
  const { stdout } = await run(
    'qemu-io',
    ['-U', '-r', '-f', format, '-c', `read -P ${read.pattern} ${read.offset} ${read.length}`, file],
    {
      accept: [1],
    },
  );
  return (
    !stdout.includes('Pattern verification failed') &&
    stdout.includes(`read ${read.length}/${read.length} bytes`)
  );
}
