import * as fs from 'node:fs';
import * as path from 'node:path';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { makeImage, TestLibvirt } from '../support/libvirt.js';
import { program, requireAll } from '../support/requirements.js';
import { TypedShell } from '../support/typed-shell.js';
import { expectError } from './expectations.js';

const SCRIPTS = { bash: 'chunkmount', zsh: '_chunkmount' } as const;
const SHELLS = ['bash', 'zsh'] as const;

/** The words that Tab put in place of the last one typed, which zsh repeats the beginning of, and bash does not. */
function words(line: string, typed: string): string[] {
  const kept = typed.slice(0, typed.search(/[^ =]*$/));
  expect(line.startsWith(kept)).toBe(true);
  const option = /--[a-z-]+=$/.exec(kept)?.[0] ?? '';
  const found = line.slice(kept.length).trim().split(' ');
  return found.map((word) => (option !== '' && word.startsWith(option) ? word.slice(option.length) : word));
}

describe.each(SHELLS)('%s completes', (name) => {
  const chunkmount = new TestChunkmount();
  const script = chunkmount.path('scripts', SCRIPTS[name]);
  let libvirt: TestLibvirt;
  let shell: TypedShell;

  beforeAll(async () => {
    await requireAll(program('script', 'bsdutils'), program(name), program('timeout', 'coreutils'));
    fs.mkdirSync(path.dirname(script));
    fs.writeFileSync(script, await chunkmount.succeed('completion', name));
    for (const session of ['mail01', 'demo', 'not one'])
      fs.mkdirSync(path.join(chunkmount.stateDirectory, 'sessions', session), { recursive: true });
    fs.mkdirSync(path.join(chunkmount.stateDirectory, 'boots', 'web-boot'), { recursive: true });
    for (const file of ['disk one.raw', 'two.raw', 'tree/x']) {
      fs.mkdirSync(path.dirname(chunkmount.path('files', file)), { recursive: true });
      fs.writeFileSync(chunkmount.path('files', file), '');
    }
    libvirt = await TestLibvirt.start();
    await makeImage(chunkmount.path('vda.raw'), 'raw', 4096);
    const disks = [{ target: 'vda', path: chunkmount.path('vda.raw'), format: 'raw' }];
    for (const vm of ['devsrv', 'mail01', 'two words']) await libvirt.define(vm, disks, { start: false });
    // A virsh that hangs for whoever asks the host named slow.
    const bin = chunkmount.path('bin');
    fs.mkdirSync(bin);
    const virsh = `#!/bin/sh\ncase " $* " in *slow*) echo >&2 'not for the terminal'; exec sleep 60;; esac\nPATH=\${PATH#*:} exec virsh "$@"\n`;
    fs.writeFileSync(path.join(bin, 'virsh'), virsh, { mode: 0o755 });
    const env = { PATH: `${bin}:${process.env.PATH}`, VIRSH_DEFAULT_CONNECT_URI: libvirt.uri };
    shell = new TypedShell(name, script, { ...chunkmount.env, ...env });
    // Loads it.
    await shell.complete('chunkmount --al');
  });

  afterAll(async () => {
    await shell?.close();
    await libvirt?.close();
    fs.rmSync(chunkmount.directory, { recursive: true });
  });

  async function completed(typed: string): Promise<string[]> {
    return words((await shell.complete(typed)).line, typed);
  }

  it.each([
    ['chunkmount re', ['restore']],
    ['chunkmount --debug un', ['unlock']],
    ['chunkmount --vm mail01 doc', ['doctor']],
    ['chunkmount help ver', ['verify']],
    ['chunkmount image-', ['image-mount', 'image-unmount']],
    ['chunkmount completion ', ['bash', 'zsh']],
    ['chunkmount chain ', ['list', 'restore']],
    ['chunkmount run --transport=', ['auto', 'kernel', 'native']],
    ['chunkmount --snapshot ', ['auto', 'lvm', 'none', 'overlay', 'pull', 'reflink']],
    ['chunkmount dump --quiesce=', ['require', 'try']],
    ['chunkmount mount --owner=roo', ['root']],
    ['chunkmount --connect=qemu:///se', ['qemu:///session']],
    ['chunkmount run --vm=mail01 -- hostnamec', ['hostnamectl']],
    ['chunkmount --vm=', ['all', 'devsrv', 'mail01']],
    ['chunkmount --vm d', ['devsrv']],
    ['chunkmount run --vm=mail01,de', ['mail01,devsrv']],
    ['chunkmount cleanup --vm=', ['demo', 'mail01']],
    ['chunkmount cleanup --name=demo,m', ['demo,mail01']],
    ['chunkmount unlock --name ', ['demo', 'mail01']],
    ['chunkmount boot --finish=', ['web-boot']],
    ['chunkmount boot --statedir=/nosuch --finish ', ['']],
    ['chunkmount verify --sample=', ['']],
  ])('%s', async (typed, expected) => {
    expect((await completed(typed)).sort()).toEqual(expected);
  });

  it('files and directories', async () => {
    const files = chunkmount.path('files');
    expect(await completed(`chunkmount --image=${files}/t`)).toContain(`${files}/two.raw`);
    expect(await completed(`chunkmount restore --to ${files}/tw`)).toEqual([`${files}/two.raw`]);
    const [tree] = await completed(`chunkmount verify ${files}/t`);
    expect(tree).toMatch(new RegExp(`^${files}/tree/?$`));
    const { line } = await shell.complete(`chunkmount --image=${files}/di`);
    expect(line.trim()).toBe(`chunkmount --image=${files}/disk\\ one.raw`);
  });

  it('every option of every verb', async () => {
    const verbs = await completed('chunkmount ');
    expect(verbs).toContain('image-unmount');
    for (const verb of verbs.filter((one) => one !== 'help')) {
      const help = await chunkmount.succeed(verb, '--help');
      const options = [...help.matchAll(/^ {2}(?:-\w, )?(--[a-z][a-z-]*)/gm)].map(([, option]) => option!);
      const offered = (await completed(`chunkmount ${verb} --`)).map((word) => word.replace(/=$/, ''));
      expect([...new Set(offered)].sort(), verb).toEqual(
        [...new Set(options)].filter((option) => option !== '--version').sort(),
      );
    }
  });

  it('in bounded time when libvirt hangs, and prints nothing then', async () => {
    const before = shell.screen.length;
    const slow = 'chunkmount --connect=qemu+tcp://slow/system --vm=';
    const { line, took } = await shell.complete(slow);
    expect(words(line, slow)).toEqual(['all']);
    expect(took).toBeLessThan(8_000);
    expect(await completed('chunkmount --connect=nosuch:///system --vm=')).toEqual(['all']);
    const shown = shell.screen.slice(before).replaceAll('chunkmount --connect', '');
    expect(shown).not.toMatch(/error|terminal|timeout|cannot|Terminated|killed/i);
  });
});

it('completion is for shells that it knows', async () => {
  const chunkmount = new TestChunkmount();
  const told = expectError(await chunkmount.run(['completion', 'fish']), 2);
  expect(told.message).toMatch(/fish/);
  fs.rmSync(chunkmount.directory, { recursive: true });
});

it('the script for bash passes shellcheck', async () => {
  await requireAll(program('shellcheck'));
  const chunkmount = new TestChunkmount();
  const input = await chunkmount.succeed('completion', 'bash');
  await execa('shellcheck', ['--shell=bash', '-'], { input });
  fs.rmSync(chunkmount.directory, { recursive: true });
});
