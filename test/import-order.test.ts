import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  collapse,
  findCycle,
  importSpecifiers,
  reachable,
  readSources,
  type SourceGraph,
  sourceFile,
  withoutComments,
} from './support/source-graph.js';

/** From the top down; an import goes to a lower level only, and peers do not import each other. See the design, src/. */
const LEVELS: readonly (readonly string[])[] = [
  ['cli.ts'],
  ['commands'],
  ['backup', 'restore', 'chain'],
  ['tracking'],
  ['fuse', 'snapshot'],
  ['content-index'],
  ['image', 'libvirt'],
  ['session', 'chunks'],
  ['host'],
  ['errors.ts'],
];

/** The one file of report/ that anybody may import. */
const REPORTER = 'report/reporter.ts';

const FUSE_WORKER = 'fuse/kernel/worker.ts';
/** Imports the file system that a FUSE worker is told to serve: a module that exports `createFilesystem`. */
const FILESYSTEM_LOADER = 'fuse/transport.ts';
const MAX_LINES = 400;
const ROOT = path.resolve(import.meta.dirname, '..');
const sources = readSources(path.join(ROOT, 'src'));

/** The part of src/ that a file belongs to: its first folder, or the file itself. */
function part(file: string): string {
  return file.split('/')[0]!;
}

function level(file: string): number {
  return LEVELS.findIndex((names) => names.includes(part(file)));
}

/** Whether one file may import another, going by where they are. */
function mayImport(from: string, to: string): boolean {
  if (part(from) === part(to) || to === REPORTER) return true;
  // The implementations of the reporter are chosen by commands, and themselves need errors at most.
  if (part(from) === 'report') return part(to) === 'errors.ts';
  if (part(to) === 'report') return ['cli.ts', 'commands'].includes(part(from));
  return level(from) < level(to);
}

function forbiddenImports(graph: SourceGraph): string[] {
  return [...graph.values()].flatMap(({ file, imports }) =>
    imports.filter((target) => !mayImport(file, target)).map((target) => `${file} imports ${target}`),
  );
}

/** Files other than `allowed` whose code matches. */
function filesWith(pattern: RegExp, allowed: string): string[] {
  return [...sources.values()]
    .filter(({ file, code }) => file !== allowed && pattern.test(code))
    .map(({ file }) => file);
}

function graphOf(files: Readonly<Record<string, string>>): SourceGraph {
  return new Map(Object.entries(files).map(([file, text]) => [file, sourceFile(file, text)]));
}

describe('src/', () => {
  test('has no part that the import order does not know', () => {
    const unknown = [...sources.keys()].filter((file) => level(file) < 0 && part(file) !== 'report');
    expect(unknown).toEqual([]);
  });

  test('has the files that are imported', () => {
    const missing = [...sources.values()].flatMap(({ file, imports }) =>
      imports.filter((target) => !sources.has(target)).map((target) => `${file} imports ${target}`),
    );
    expect(missing).toEqual([]);
  });

  test('imports only what is further down', () => {
    expect(forbiddenImports(sources)).toEqual([]);
  });

  test('has no cycle of files', () => {
    expect(findCycle(collapse(sources, (file) => file))).toBeUndefined();
  });

  test('has no cycle of folders', () => {
    expect(findCycle(collapse(sources, part))).toBeUndefined();
    // Within a part: what is in its own folder stands for itself, so that kernel/ may use an interface beside it.
    expect(findCycle(collapse(sources, (file) => file.split('/').slice(0, 2).join('/')))).toBeUndefined();
  });

  test('keeps snapshots, libvirt and commands away from FUSE workers', () => {
    const factories = filesWith(/^export (async )?function createFilesystem\b/m, '');
    expect(sources.has(FUSE_WORKER)).toBe(true);
    expect(factories).not.toEqual([]);
    const reached = [FUSE_WORKER, ...factories].flatMap((start) => [...reachable(sources, start)]);
    expect(reached.filter((file) => ['snapshot', 'libvirt', 'commands'].includes(part(file)))).toEqual([]);
  });

  test('ends the process in cli.ts only', () => {
    expect(filesWith(/\bprocess\s*\.\s*(exit|abort|reallyExit)\b|['"](node:)?process['"]/, 'cli.ts')).toEqual(
      [],
    );
  });

  test('starts processes in host/exec.ts only', () => {
    expect(filesWith(/['"`]((node:)?child_process|execa)['"`]/, 'host/exec.ts')).toEqual([]);
  });

  test('imports by name, so that this test sees it, except file systems', () => {
    expect(filesWith(/\bimport\(\s*[^'"\s]/, FILESYSTEM_LOADER)).toEqual([]);
  });

  test('has no file that is a place for anything', () => {
    const names = [...sources.keys()].filter((file) =>
      /^(types?|utils?|index|common|helpers?|misc)\.ts$/.test(path.basename(file)),
    );
    expect(names).toEqual([]);
  });

  test('has no file that only passes on what others export', () => {
    const reexport = /^export\s(?:type\s)?[\w$*{},\s]*\sfrom\s+'[^']+';/gm;
    const barrels = [...sources.values()].filter(
      ({ code }) => reexport.test(code) && code.replace(reexport, '').trim() === '',
    );
    expect(barrels.map(({ file }) => file)).toEqual([]);
  });

  test.each(['src', 'test'])('has no file over 400 lines (%s/)', (directory) => {
    const long = [...readSources(path.join(ROOT, directory)).values()].filter(
      ({ lines }) => lines > MAX_LINES,
    );
    expect(long.map(({ file, lines }) => `${directory}/${file}: ${lines}`)).toEqual([]);
  });
});

describe('this test', () => {
  test('sees every form of import', () => {
    const code = `import 'a';
import b from 'b';
import * as c from 'c';
import type { D } from 'd';
import e, {
  type E,
  f as g,
} from 'e';
export { h } from 'h';
export * from 'i';
export type { J } from 'j';
const k = await import('k');
export const notOne = 'l';
const nor = "from 'm'";`;
    expect(importSpecifiers(code)).toEqual(['a', 'b', 'c', 'd', 'e', 'h', 'i', 'j', 'k']);
  });

  test('does not read comments', () => {
    expect(withoutComments(`a; // import 'b'\n/* import 'c' */ d = 'http://e';`)).toBe(
      `a;  \n  d = 'http://e';`,
    );
  });

  test.each([
    ['cli.ts', 'commands/mount.ts'],
    ['commands/mount.ts', 'backup/prepare.ts'],
    ['commands/mount.ts', 'report/text.ts'],
    ['snapshot/lvm.ts', REPORTER],
    ['fuse/kernel/worker.ts', 'fuse/wire/init.ts'],
    ['image/map.ts', 'chunks/geometry.ts'],
    ['session/lock.ts', 'errors.ts'],
  ])('lets %s import %s', (from, to) => {
    expect(mayImport(from, to)).toBe(true);
  });

  test.each([
    ['commands/mount.ts', 'cli.ts'],
    ['backup/prepare.ts', 'restore/verify.ts'],
    ['fuse/kernel/worker.ts', 'snapshot/lvm.ts'],
    ['image/map.ts', 'libvirt/virsh.ts'],
    ['chunks/manifest.ts', 'session/lock.ts'],
    ['snapshot/lvm.ts', 'report/text.ts'],
    ['report/text.ts', 'host/exec.ts'],
    ['errors.ts', 'host/exec.ts'],
  ])('does not let %s import %s', (from, to) => {
    expect(mayImport(from, to)).toBe(false);
  });

  test('finds an import that goes up', () => {
    const graph = graphOf({
      'host/exec.ts': `import { Lock } from '../session/lock.js';`,
      'session/lock.ts': '',
    });
    expect(forbiddenImports(graph)).toEqual(['host/exec.ts imports session/lock.ts']);
  });

  test('finds cycles and what is reached', () => {
    const graph = graphOf({
      'a.ts': `import './b.js';`,
      'b.ts': `import './c.js';`,
      'c.ts': `import './b.js';`,
    });
    expect(findCycle(collapse(graph, (file) => file))).toEqual(['b.ts', 'c.ts', 'b.ts']);
    expect([...reachable(graph, 'a.ts')].sort()).toEqual(['a.ts', 'b.ts', 'c.ts']);
  });
});
