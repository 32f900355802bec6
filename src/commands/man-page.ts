import type { Command } from 'commander';
import { AFTER, BEFORE } from './man-text.js';

/** Characters that roff takes for something else (see groff_char(7)), and all that are not ASCII. */
const SPECIAL: Readonly<Record<string, string>> = {
  '\\': '\\e',
  '-': '\\-',
  "'": '\\(aq',
  '`': '\\(ga',
  '^': '\\(ha',
  '~': '\\(ti',
};

function roff(text: string): string {
  const escaped = text
    .replace(/[\\\-'`^~]/g, (character) => SPECIAL[character]!)
    .replace(/[^\n -~]/gu, (character) => {
      const code = character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, '0');
      return `\\[u${code}]`;
    });
  return escaped.startsWith('.') ? `\\&${escaped}` : escaped;
}

/** Lines that are to stay as they are: examples, tables. */
function verbatim(lines: readonly string[]): string[] {
  const indent = Math.min(...lines.map((line) => line.search(/\S/)));
  return ['.PP', '.nf', '.RS 4', ...lines.map((line) => roff(line.slice(indent))), '.RE', '.fi'];
}

function paragraph(lines: readonly string[]): string[] {
  const title = /^(Exit status|Examples?[^:]*):/.exec(lines[0]!)?.[0];
  const first = title === undefined ? roff(lines[0]!) : undefined;
  const rest = lines.slice(1).map(roff);
  if (first !== undefined) return ['.PP', first, ...rest];
  const remainder = lines[0]!.slice(title!.length).trim();
  return ['.PP', `\\fB${roff(title!)}\\fR`, ...(remainder === '' ? [] : [roff(remainder)]), ...rest];
}

/** Help text as the commands have it: paragraphs of lines, and lines that are indented because they are to stay as they are. */
function prose(text: string): string[] {
  const out: string[] = [];
  for (const block of text.trim().length === 0 ? [] : text.replace(/^\n+|\s+$/g, '').split(/\n{2,}/)) {
    let run: string[] = [];
    const flush = () => {
      if (run.length > 0) out.push(...(run[0]!.startsWith('  ') ? verbatim(run) : paragraph(run)));
      run = [];
    };
    for (const line of block.split('\n')) {
      if (run.length > 0 && run[0]!.startsWith('  ') !== line.startsWith('  ')) flush();
      run.push(line);
    }
    flush();
  }
  return out;
}

/** What `--help` shows after the options; see addHelpText. */
function helpText(command: Command): string {
  let shown = '';
  const { writeOut, ...others } = command.configureOutput();
  command.configureOutput({ ...others, writeOut: (text) => (shown += text) });
  command.outputHelp();
  command.configureOutput({ ...others, ...(writeOut === undefined ? {} : { writeOut }) });
  return shown.slice(command.helpInformation().length);
}

/** Terms and what they mean. */
function terms(rows: readonly { term: string; text: string }[]): string[] {
  return rows.flatMap(({ term, text }) => ['.TP', `\\fB${roff(term)}\\fR`, roff(text)]);
}

function options(command: Command): string[] {
  const help = command.createHelp();
  return terms(
    help
      .visibleOptions(command)
      .filter(({ long }) => long !== '--help')
      .map((option) => ({ term: help.optionTerm(option), text: help.optionDescription(option) })),
  );
}

function synopsis(command: Command): string {
  const usage = command.createHelp().commandUsage(command);
  return `\\fB${roff('chunkmount')}\\fR ${roff(usage.replace(/^chunkmount(\|\w+)* /, ''))}`;
}

function sentence(text: string): string {
  const capital = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!]$/.test(capital) ? capital : `${capital}.`;
}

function verb(command: Command): string[] {
  return [
    `.SS ${roff(command.name())}`,
    synopsis(command),
    '.PP',
    roff(sentence(command.description())),
    ...options(command),
    ...prose(helpText(command)),
  ];
}

function sections(texts: Readonly<Record<string, string>>): string[] {
  return Object.entries(texts).flatMap(([title, text]) => {
    const [first, ...rest] = prose(text);
    return [`.SH ${title}`, ...(first === '.PP' ? rest : [first!, ...rest])];
  });
}

/**
 * The manual of a program with all its commands, in roff for man(7): what `--help` says of each, and what there is to be said of all.
 * `date` is `YYYY-MM-DD`.
 */
export function manPage(program: Command, version: string, date: string): string {
  const lines = [
    `.\\" Made of the commands' own help: scripts/lib/man-page.mjs`,
    `.TH CHUNKMOUNT 1 ${date} "chunkmount ${version}" "User Commands"`,
    '.SH NAME',
    'chunkmount \\- back up disks of virtual machines as many small files',
    '.SH SYNOPSIS',
    synopsis(program),
    ...sections(BEFORE),
    ...prose(helpText(program)),
    '.SH OPTIONS',
    'These go with every command.',
    ...options(program),
    '.TP',
    '\\fB\\-\\-help\\fR',
    'what it does, or with a command: what that does',
    '.SH COMMANDS',
    ...program.commands.flatMap(verb),
    ...sections(AFTER),
  ];
  return `${lines.join('\n')}\n`;
}
