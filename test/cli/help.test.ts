import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import type { Command } from 'commander';
import { execa } from 'execa';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type BackupOptions, backupSettings } from '../../src/commands/backup-options.js';
import { manPage } from '../../src/commands/man-page.js';
import { addVerbs, createProgram } from '../../src/commands/program.js';
import { translateSpellings } from '../../src/commands/spellings.js';
import { loadAllVerbs } from '../../src/commands/verbs.js';
import { program as programRequirement, requireAll } from '../support/requirements.js';

const ROOT = path.resolve(import.meta.dirname, '../..');

/** Verbs that take the options of a backup. */
const BACKUPS = ['mount', 'run', 'dump'];

/** The program as it is, but that no verb does anything: `parsed` gets the name of the one that would run, and its options. */
async function parser(parsed: (verb: string, options: Record<string, unknown>) => void): Promise<Command> {
  const program = createProgram();
  addVerbs(program, await loadAllVerbs(), () => {
    throw new Error('no command is run here');
  });
  for (const command of program.commands)
    command.action(() => {
      // The default verb takes any word, to say that it is no verb.
      if (command.name() === 'mount' && command.args.length > 0) throw new Error(`no verb: ${command.args}`);
      parsed(command.name(), command.opts());
    });
  return program;
}

function helpOf(command: Command): string {
  let shown = '';
  command.configureOutput({ writeOut: (text) => (shown += text) });
  command.outputHelp();
  return shown;
}

/** Lines that call chunkmount, anywhere in a text; what stands behind three spaces is said about them. */
function examplesIn(text: string): string[] {
  const lines = text.split('\n').filter((line) => /^ {2,}chunkmount /.test(line));
  return lines.map((line) => line.trim().split(/ {3,}/)[0]!);
}

describe('help', () => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'cm-help-'));
  let program: Command;
  const seen: { verb: string; options: Record<string, unknown> }[] = [];

  beforeAll(async () => {
    program = await parser((verb, options) => seen.push({ verb, options }));
  });

  afterAll(() => fs.rmSync(directory, { recursive: true }));

  /** The arguments that a shell gives chunkmount, for each time that a line calls it. Other programs are not there. */
  async function argumentsOf(line: string): Promise<string[][]> {
    const file = path.join(directory, 'arguments');
    fs.rmSync(file, { force: true });
    const script = `PATH=; chunkmount() { printf '%s\\0' "$@" >>'${file}'; printf '\\n' >>'${file}'; }
command_not_found_handle() { :; }; ${line}`;
    // What a line redirects goes below here.
    const { stderr } = await execa('/bin/bash', ['-c', script], { cwd: directory, reject: false });
    if (!fs.existsSync(file)) throw new Error(`${line}: ${stderr}`);
    const calls = fs.readFileSync(file, 'utf8').split('\0\n').slice(0, -1);
    return calls.map((call) => call.split('\0'));
  }

  /** Throws unless the program's own parser takes it. */
  async function expectValid(line: string): Promise<string[]> {
    const verbs: string[] = [];
    for (const args of await argumentsOf(line)) {
      if (args.at(-1) === '--help') continue;
      // Options keep their values from one time to the next.
      const fresh = await parser((verb, options) => {
        verbs.push(verb);
        if (BACKUPS.includes(verb)) backupSettings(options as unknown as BackupOptions);
      });
      await fresh.parseAsync(translateSpellings(args), { from: 'user' });
    }
    return verbs;
  }

  it('of the program has examples that are valid', async () => {
    const examples = examplesIn(helpOf(program));
    expect(examples.length).toBeGreaterThan(3);
    for (const line of examples) await expectValid(line);
  });

  it('of every verb has an exit status, and examples of it that are valid', async () => {
    for (const command of program.commands) {
      const name = command.name();
      const help = helpOf(command);
      expect(help, name).toContain('\nExit status: ');
      const [, shown = ''] = help.split(/\nExamples?[^\n]*:\n/);
      const examples = examplesIn(shown);
      const called: string[] = [];
      for (const line of examples) called.push(...(await expectValid(line)));
      expect(called, `examples of ${name}`).toContain(name);
      for (const line of examplesIn(help)) {
        // A synopsis has brackets.
        if (!/[[|]/.test(line)) await expectValid(line);
      }
    }
  });

  it('fits a terminal of 130 columns where it is written by hand', () => {
    for (const command of [program, ...program.commands]) {
      const text = helpOf(command).slice(command.helpInformation().length);
      const long = text.split('\n').filter((line) => line.length > 130);
      expect(long, command.name()).toEqual([]);
    }
  });

  it('is told apart from mistakes', async () => {
    await expect(expectValid('chunkmount restore /tree --to')).rejects.toThrow(/argument missing/);
    await expect(expectValid('chunkmount nosuch')).rejects.toThrow(/no verb/);
    await expect(expectValid('chunkmount --vm=a --transport=pigeon')).rejects.toThrow(/not possible/);
    await expect(expectValid('chunkmount --vm=a --chunk-size=5K')).rejects.toThrow(/no chunk size/);
    await expect(expectValid('chunkmount chain --vm=a --to=/x --disk=vda')).rejects.toThrow(
      /does not take --disk/,
    );
  });

  it('in README is valid, too', async () => {
    const readme = fs.readFileSync(path.join(ROOT, 'README.md'), 'utf8');
    const examples = examplesIn(readme);
    expect(examples.length).toBeGreaterThan(15);
    for (const line of examples) await expectValid(line.replace(/ {2,}#.*$/, ''));
  });
});

describe('the manual', () => {
  let page: string;
  let program: Command;

  beforeAll(async () => {
    await requireAll(programRequirement('mandoc'), programRequirement('man', 'man-db'));
    program = await parser(() => {});
    page = manPage(program, '1.2.3', '2026-01-02');
  });

  const plain = async () =>
    (await execa('mandoc', ['-T', 'utf8', '-O', 'width=300'], { input: page })).stdout
      // How a terminal shows bold and underlined.
      .replace(/.[\b]/g, '');

  it('has all that help says of each verb', async () => {
    const words = (text: string) => text.replace(/\s+/g, ' ');
    const shown = words(await plain());
    for (const command of program.commands) {
      const help = command.createHelp();
      for (const option of help.visibleOptions(command)) {
        if (option.long === '--help') continue;
        expect(shown, command.name()).toContain(
          words(`${help.optionTerm(option)} ${help.optionDescription(option)}`),
        );
      }
      const more = helpOf(command).slice(command.helpInformation().length);
      for (const line of more.split('\n')) expect(shown, command.name()).toContain(words(line.trim()));
    }
  });

  it('is right, its two readers say', async () => {
    const { stdout } = await execa('mandoc', ['-T', 'lint'], { input: page, reject: false });
    const findings = stdout.split('\n').filter((line) => line !== '' && !/longer than 80 bytes/.test(line));
    expect(findings).toEqual([]);
    const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'cm-man-')), 'chunkmount.1');
    fs.writeFileSync(file, page);
    const shown = await execa('man', ['--warnings', '--local-file', file], {
      env: { LC_ALL: 'C.UTF-8', MANWIDTH: '200', MANPAGER: 'cat' },
    });
    expect(shown.stderr).toBe('');
    expect(shown.stdout).toContain('chunkmount 1.2.3');
    fs.rmSync(path.dirname(file), { recursive: true });
  });
});
