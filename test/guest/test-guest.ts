import * as fs from 'node:fs';
import * as path from 'node:path';
import { run } from '../../src/host/exec.js';
import { eventually, type TestDomain, type TestLibvirt } from '../support/libvirt.js';

const SCRIPTS = path.resolve(import.meta.dirname, '../../scripts/lib');
const MODULES = ['virtio_pci', 'virtio_blk', 'virtio_console', 'ext4'];
const AGENT = '/usr/sbin/qemu-ga';
const DISK_SIZE = '512M';
const SLOW_MS = 300_000;

/** Copies a program to where it is in the host's root, with the libraries that it is linked with. */
async function copyProgram(program: string, tree: string): Promise<void> {
  const { stdout } = await run('ldd', [program]);
  for (const [file] of stdout.matchAll(/\/\S+/g)) {
    fs.mkdirSync(path.join(tree, path.dirname(file)), { recursive: true });
    fs.copyFileSync(fs.realpathSync(file), path.join(tree, file));
  }
  fs.mkdirSync(path.join(tree, 'bin'), { recursive: true });
  fs.copyFileSync(program, path.join(tree, 'bin', path.basename(program)));
}

/** The guest's root file system: busybox, the guest agent, and an init that writes files. */
async function makeDisk(file: string, scratch: string): Promise<void> {
  const tree = path.join(scratch, 'root');
  for (const directory of ['bin', 'data', 'dev', 'proc', 'run', 'sys']) {
    fs.mkdirSync(path.join(tree, directory), { recursive: true });
  }
  const { stdout } = await run('which', ['busybox']);
  fs.copyFileSync(stdout.trim(), path.join(tree, 'bin', 'busybox'));
  await copyProgram(AGENT, tree);
  fs.copyFileSync(path.join(import.meta.dirname, 'init'), path.join(tree, 'init'));
  const raw = path.join(scratch, 'root.raw');
  await run('mke2fs', ['-q', '-t', 'ext4', '-d', tree, raw, DISK_SIZE], { timeoutMs: SLOW_MS });
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, file], { timeoutMs: SLOW_MS });
  fs.rmSync(raw);
  fs.rmSync(tree, { recursive: true });
}

/** A Debian kernel that runs under libvirt, writes files with fsync, and tells on its console which ones are safe. */
export class TestGuest {
  private constructor(
    readonly libvirt: TestLibvirt,
    readonly domain: TestDomain,
    readonly disk: string,
    readonly console: string,
  ) {}

  /** Defines and starts it, everything of it in `directory`. */
  static async start(libvirt: TestLibvirt, name: string, directory: string): Promise<TestGuest> {
    const { stdout } = await run(path.join(SCRIPTS, 'vm-kernel'), [], { timeoutMs: SLOW_MS });
    const kernel = stdout.trim();
    const disk = path.join(directory, `${name}.qcow2`);
    const initrd = path.join(directory, 'initrd');
    const init = path.join(import.meta.dirname, 'initrd-init');
    await run(path.join(SCRIPTS, 'vm-initrd'), [kernel, initrd, init, ...MODULES], { timeoutMs: SLOW_MS });
    const vmlinuz = path.join(directory, 'vmlinuz');
    fs.copyFileSync(path.join(kernel, 'vmlinuz'), vmlinuz);
    await makeDisk(disk, directory);
    const console = path.join(directory, 'console');
    const xml = path.join(directory, 'guest.xml');
    fs.writeFileSync(xml, guestXml({ name, disk, vmlinuz, initrd, console }));
    await libvirt.virsh.call('define', ['--file', xml], SLOW_MS);
    await libvirt.virsh.call('start', ['--domain', name], SLOW_MS);
    return new TestGuest(libvirt, await libvirt.virsh.find(name), disk, console);
  }

  /** What the guest has said since it was started last. */
  said(): string {
    return fs.existsSync(this.console) ? fs.readFileSync(this.console, 'latin1') : '';
  }

  /** The last file that it said is safe. */
  synced(): number {
    const lines = [...this.said().matchAll(/^synced (\d+)\r?$/gm)];
    return Number(lines.at(-1)?.[1] ?? 0);
  }

  /** Waits until `count` more files are safe. */
  async writesMore(count: number): Promise<void> {
    const wanted = this.synced() + count;
    await this.#until(() => this.synced() >= wanted);
  }

  /** Waits for what a guest that was started on a copy says of the files that it finds. Returns how many are whole. */
  async verifies(): Promise<number> {
    await this.#until(() => /^(verified \d+|damaged)\r?$/m.test(this.said()));
    const verified = /^verified (\d+)\r?$/m.exec(this.said());
    if (verified === null) throw new Error(`the guest finds damaged files:\n${this.said()}`);
    return Number(verified[1]);
  }

  async #until(condition: () => boolean): Promise<void> {
    try {
      await eventually(async () => condition());
    } catch (error) {
      throw new Error(`the guest does not get on; its console:\n${this.said().slice(-2000)}`, {
        cause: error,
      });
    }
  }

  /** Waits until its agent answers. */
  async agentAnswers(): Promise<void> {
    const ping = ['--domain', this.domain.uuid, '--cmd', '{"execute":"guest-ping"}'];
    await eventually(() =>
      this.libvirt.virsh.call('qemu-agent-command', ping).then(
        () => true,
        () => false,
      ),
    );
  }
}

interface GuestFiles {
  readonly name: string;
  readonly disk: string;
  readonly vmlinuz: string;
  readonly initrd: string;
  readonly console: string;
}

function guestXml({ name, disk, vmlinuz, initrd, console }: GuestFiles): string {
  return `<domain type='qemu'><name>${name}</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>${vmlinuz}</kernel><initrd>${initrd}</initrd><cmdline>console=ttyS0 panic=-1 quiet</cmdline></os>
<features><acpi/></features><cpu mode='maximum'/><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${disk}'/><target dev='vda' bus='virtio'/></disk>
<serial type='file'><source path='${console}'/><target port='0'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>`;
}
