import * as fs from 'node:fs';
import * as path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { TestChunkmount } from '../support/chunkmount.js';
import { expectError, toldError, traces } from './expectations.js';

const VERBS = ['mount', 'cleanup', 'run', 'list', 'unlock', 'restore', 'verify', 'doctor'];

/** What is wrong with a command line shows before anything is done, with exit code 2 and what to type instead. */
describe('the command line', () => {
  const chunkmount = new TestChunkmount();
  const image = chunkmount.path('disk.raw');

  beforeAll(() => fs.writeFileSync(image, Buffer.alloc(4096, 1)));

  afterAll(() => {
    expect(traces(chunkmount)).toEqual([]);
    fs.rmSync(chunkmount.directory, { recursive: true });
  });

  it('says what it can do, on stdout', async () => {
    const { exitCode, stdout, stderr } = await chunkmount.run(['--help']);
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    for (const verb of VERBS) expect(stdout).toMatch(new RegExp(`^  ${verb}\\b`, 'm'));
  });

  it.each(VERBS)('says what %s can do, with its exit codes and the options that all have', async (verb) => {
    const { exitCode, stdout, stderr } = await chunkmount.run([verb, '--help']);
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    expect(stdout).toContain(`Usage: chunkmount ${verb} `);
    expect(stdout).toContain('Exit status: ');
    for (const option of ['--json', '--debug']) expect(stdout).toContain(option);
    expect(stdout).not.toMatch(/undefined|\[object/);
  });

  it('takes a file in the place of the state directory for one without boots', async () => {
    expect(await chunkmount.succeed('boot', '--list', `--statedir=${image}`)).toBe('');
  });

  it('says that there is no image below a file', async () => {
    const told = expectError(await chunkmount.run([`--image=${image}/x.raw`, '--name=x']), 1);
    expect(told.message).toBe(`there is no image ${image}/x.raw`);
  });

  it('says its version', async () => {
    const { version } = JSON.parse(
      fs.readFileSync(path.join(import.meta.dirname, '../../package.json'), 'utf8'),
    ) as { version: string };
    expect(await chunkmount.succeed('--version')).toBe(`${version}\n`);
  });

  it.each<[string[], RegExp, RegExp]>([
    [[], /nothing to back up was named/, /--vm=NAME.*--image=FILE --name=NAME/],
    [['--nosuch'], /unknown option '--nosuch'/, /--help/],
    [['--chunksize', '64K'], /unknown option.*did you mean --chunk-size\?/, /chunkmount mount --help/],
    [['nosuch'], /"nosuch" is neither a command nor an option/, /--help/],
    [['mail01'], /"mail01" is neither/, /--vm=NAME/],
    [['mount', 'mail01'], /"mail01" is neither/, /--vm=NAME/],
    [['--vm'], /'--vm <names>' argument missing/, /--help/],
    [['--vm='], /--vm is empty/, /--vm=first,second/],
    [['--vm=a', '--vm='], /--vm=a, has an empty element/, /--vm=first,second/],
    [['--vm=a,,b'], /--vm=a,,b has an empty element/, /--vm=first,second/],
    [['--vm=a', '--name=b'], /--name and --format go with --image/, /name of its VM/],
    [['cleanup'], /nothing to clean up/, /--vm=NAME.*--all/],
    [['cleanup', 'mail01'], /too many arguments/, /chunkmount cleanup --help/],
    [['unlock'], /nothing to unlock/, /--vm=NAME or --name=NAME/],
    [['help', 'nosuch'], /there is no help on "nosuch"/, /--help names all commands/],
    [['run', '--vm=a'], /missing required argument 'command'/, /chunkmount run --help/],
    [['run', '--vm=a', 'rsync', '-a'], /unknown option '-a'/, /chunkmount run --help/],
    [['--vm=a', '--no-snapshot', '--quiesce=require'], /exclude each other/, /leave one of them out/],
    [['--vm=a', '--no-snapshot', '--snapshot=overlay'], /exclude each other/, /leave one of them out/],
    [['dump', '--vm=a', '--snapshot=lvm', '--no-snapshot'], /exclude each other/, /leave one of them out/],
    [['list', '--statedir='], /--statedir is empty/, /leave it out/],
    [['--vm=a', '--backupdir='], /--backupdir is empty/, /leave it out/],
    [['--vm=a', '--overlay-dir='], /--overlay-dir is empty/, /leave it out/],
    [['restore', '', '--to=x'], /<tree> is empty/, /give the directory/],
    [['verify', ''], /<tree> is empty/, /give the directory/],
    [['diff', '', 'x'], /<tree1> is empty/, /give the older tree/],
    [['restore', 'tree', '--to='], /--to is empty/, /say where/],
    [['list', '--nosuch'], /unknown option/, /chunkmount list --help/],
    [['--action=nosuch'], /--action=nosuch is not possible/, /chunkmount, .*cleanup, unlock/],
    [['--action'], /--action needs a value|--action= is not possible/, /chunkmount, .*cleanup, unlock/],
  ])('refuses %j', async (args, message, hint) => {
    const told = expectError(await chunkmount.run(args), 2);
    expect(told.message).toMatch(message);
    expect(told.hint).toMatch(hint);
  });

  describe('with an image', () => {
    const long = 'a'.repeat(300);
    it.each<[string[], RegExp, RegExp]>([
      [[], /--image needs a name/, /--name=NAME/],
      [['--name=x', '--vm=y'], /--image and --vm exclude each other/, /./],
      [['--name=x', '--chunk-size=5K'], /"5K" is no chunk size/, /from 4K to 16M/],
      [['--name=x', '--chunk-size=2K'], /"2K" is no chunk size/, /from 4K to 16M/],
      [['--name=x', '--chunk-size=32M'], /"32M" is no chunk size/, /from 4K to 16M/],
      [['--name=x', '--chunk-size=0'], /"0" is no chunk size/, /from 4K to 16M/],
      [['--name=x', '--chunk-size=-4K'], /"-4K" is no chunk size/, /from 4K to 16M/],
      [['--name=x', '--chunk-size=1e6'], /"1e6" is no chunk size/, /from 4K to 16M/],
      [['--name=x', '--chunk-size='], /"" is no chunk size/, /from 4K to 16M/],
      [['--name=x', '--format=zip'], /"zip" is no image format/, /raw, qcow2/],
      [['--name=x', '--snapshot=magic'], /--snapshot=magic is not possible/, /auto, overlay/],
      [['--name=x', '--transport=pigeon'], /--transport=pigeon is not possible/, /auto, kernel, native/],
      [['--name=x', '--quiesce=maybe'], /--quiesce=maybe is not possible/, /try, require/],
      [['--name=x', '--max-backups=0'], /--max-backups=0/, /--max-backups=/],
      [['--name=x', '--max-backups=many'], /--max-backups=many/, /--max-backups=/],
      [['--name=x', '--owner=nosuchuser'], /no user called "nosuchuser"/, /--owner=USER/],
      [['--name=x', '--exclude=disk1'], /x has no disk disk1 to exclude/, /disk0/],
      [['--name=a/b'], /"a\/b" cannot be the name/, /--name/],
      [['--name=..'], /"\.\." cannot be the name/, /--name/],
      [['--name=.'], /"\." cannot be the name/, /--name/],
      [['--name=-x'], /"-x" cannot be the name/, /--name/],
      [['--name=a b'], /"a b" cannot be the name/, /--name/],
      [['--name=a\nb'], /"a\\nb" cannot be the name/, /--name/],
      [['--name='], /"" cannot be the name.*empty/, /--name/],
      [[`--name=${long}`], /longer than 128/, /--name/],
    ])('refuses %j', async (args, message, hint) => {
      const told = expectError(await chunkmount.run([`--image=${image}`, ...args]), 2);
      expect(told.message).toMatch(message);
      expect(told.hint).toMatch(hint);
    });

    it('refuses a format that the name of the file does not say', async () => {
      const odd = chunkmount.path('disk');
      fs.writeFileSync(odd, 'QFI');
      const told = expectError(await chunkmount.run([`--image=${odd}`, '--name=x']), 2);
      expect(told.message).toContain(odd);
      expect(told.hint).toMatch(/--format=raw/);
    });

    it('fails when excluding leaves no disk', async () => {
      const told = expectError(await chunkmount.run([`--image=${image}`, '--name=x', '--exclude=disk0']), 1);
      expect(told.message).toMatch(/x has no disk to back up/);
    });
  });

  describe('a list that is given in parts', () => {
    it('is taken whole: images and disks', async () => {
      const args = [`--image=${image}`, '--name=x', `--image=${image}`, '--exclude=disk0', '--exclude=disk1'];
      expect(expectError(await chunkmount.run(args), 1).message).toMatch(/x has no disk to back up/);
    });

    it('is taken whole: sessions', async () => {
      const { stderr } = await chunkmount.run(['cleanup', '--vm=one', '--vm=two']);
      expect(stderr).toMatch(/one has no session[\s\S]*two has no session/);
    });
  });

  it.each(['../x', 'a/b', 'a b', '-x', '', 'x'.repeat(300)])(
    'refuses the VM name %j everywhere',
    async (name) => {
      for (const verb of ['mount', 'cleanup', 'unlock'])
        expectError(await chunkmount.run([verb, `--vm=${name}`]), 2);
    },
  );

  it('tells what went wrong and where with --debug', async () => {
    const { stderr } = await chunkmount.run(['--debug', 'cleanup']);
    expect(stderr).toMatch(/\n {4}at /);
    const { stderr: quiet } = await chunkmount.run(['cleanup']);
    toldError(quiet);
  });

  it('leaves what comes after -- to the command', async () => {
    const told = expectError(await chunkmount.run(['run', '--', 'x', '--debug', '--json', '--help']), 2);
    expect(told.message).toMatch(/nothing to back up/);
  });

  describe('spelt as for virt-backup', () => {
    it.each([
      [['--action=cleanup', '--vm=x']],
      [['--action', 'cleanup', '--vm=x']],
      [['--vm=x', '--cleanup']],
      [['--cleanup', '--vm=x']],
    ])('cleans up: %j', async (args) => {
      expect(await chunkmount.run(args)).toMatchObject({
        exitCode: 0,
        stdout: '',
        stderr: expect.stringContaining('x has no session'),
      });
    });

    it.each([[['--action=unlock', '--vm=x']], [['--unlock', '--vm=x']]])('unlocks: %j', async (args) => {
      expect(await chunkmount.run(args)).toMatchObject({
        exitCode: 0,
        stdout: '',
        stderr: expect.stringContaining('x was not locked'),
      });
    });
  });
});
