import * as fs from 'node:fs';
import { directoryCount } from '../chunks/geometry.js';
import { layoutOf } from '../chunks/layout.js';
import { type ManifestDisk, type ManifestExtra, topLevelNames } from '../chunks/manifest.js';
import { systemCode } from '../errors.js';
import { parseDefinition } from '../libvirt/definition.js';
import { child, rootOf, textOf } from '../libvirt/xml.js';
import { byPath, type FileProblem, fileProblem, stray, unlisted } from './problem.js';
import type { Tree } from './tree.js';
import { listNames, openDirectory, statFile } from './tree-files.js';
import { MAX_LISTED } from './worker-pool.js';

/** Everything at the top of a tree: domain XML, extra files, names that do not belong there. Chunks and sums are looked at elsewhere. */
export function checkTopLevel(tree: Tree): FileProblem[] {
  if (tree.isPlain) return [];
  return [
    ...checkXml(tree),
    ...tree.manifest.extras.flatMap((extra) => checkExtra(tree, extra)),
    ...take(strayNames(tree)).sort(byPath),
  ];
}

function* strayNames({ fd, root, manifest }: Tree): Generator<FileProblem, void> {
  const known = new Set(topLevelNames(manifest));
  try {
    for (const name of listNames(fd)) if (!known.has(name)) yield stray(name);
  } catch (error) {
    yield unlisted('.', error, root);
  }
}

/** The problems, as long as there are not too many to be of use. */
function take(problems: Iterable<FileProblem>): FileProblem[] {
  const found: FileProblem[] = [];
  for (const problem of problems) {
    found.push(problem);
    if (found.length === MAX_LISTED) break;
  }
  return found;
}

/** Directories of a disk that do not belong there, or cannot be listed. Those that hold chunks are looked at elsewhere. */
export function checkDiskDirectory(tree: Tree, target: string): FileProblem[] {
  const disk = tree.disk(target);
  const { directory } = disk;
  let fd: number;
  try {
    fd = openDirectory(tree.fd, directory);
  } catch (error) {
    // Every chunk in it will be reported missing; only a disk without chunks has nobody to say so.
    if (disk.chunkCount > 0 && systemCode(error) === 'ENOENT') return [];
    return [
      fileProblem(
        'disk',
        directory,
        new Error(`${directory} cannot be opened: ${systemCode(error) ?? error}`),
      ),
    ];
  }
  try {
    const place = { fd, path: directory, rank: layoutOf(disk.layout).levels, number: 0 };
    return take(strayDirectories(disk, place)).sort(byPath);
  } finally {
    fs.closeSync(fd);
  }
}

/** A directory of a disk that holds directories: see Layout. */
interface Place {
  readonly fd: number;
  readonly path: string;
  readonly rank: number;
  readonly number: number;
}

/** What does not belong into such a directory, and into those below. One that cannot be opened has all its chunks missing. */
function* strayDirectories(
  disk: ManifestDisk,
  { fd, path, rank, number }: Place,
): Generator<FileProblem, void> {
  const count = directoryCount(disk, rank - 1);
  try {
    for (const name of listNames(fd)) {
      const child = layoutOf(disk.layout).parseDirectoryName(rank - 1, number, name);
      if (child < 0 || child >= count) yield stray(`${path}/${name}`);
      else if (rank > 1) yield* straysIn(disk, fd, { name, path, rank: rank - 1, number: child });
    }
  } catch (error) {
    yield unlisted(path, error);
  }
}

function* straysIn(
  disk: ManifestDisk,
  parent: number,
  { name, path, rank, number }: { name: string; path: string; rank: number; number: number },
): Generator<FileProblem, void> {
  let fd: number;
  try {
    fd = openDirectory(parent, name);
  } catch {
    return;
  }
  try {
    yield* strayDirectories(disk, { fd, path: `${path}/${name}`, rank, number });
  } finally {
    fs.closeSync(fd);
  }
}

function checkExtra(tree: Tree, { file, size }: ManifestExtra): FileProblem[] {
  const problem = (what: string): FileProblem[] => [
    { kind: 'extra', path: file, message: `${file} ${what}` },
  ];
  try {
    const stat = statFile(tree.fd, file);
    if (!stat.isFile()) return problem('is no plain file');
    return stat.size === size ? [] : problem(`has ${stat.size} bytes instead of ${size}`);
  } catch (error) {
    const code = systemCode(error);
    return problem(code === 'ENOENT' ? 'is missing' : `cannot be read: ${code ?? error}`);
  }
}

/** The domain XML must be XML of a domain, of the name and UUID that the manifest gives. */
function checkXml(tree: Tree): FileProblem[] {
  const { domainXml: file, name, uuid } = tree.manifest;
  if (file === null) return [];
  try {
    const domain = rootOf(parseDefinition(tree.readText(file)));
    return [
      ...same(file, 'name', textOf(child(domain, 'name')), name),
      ...(uuid === null
        ? []
        : same(file, 'UUID', textOf(child(domain, 'uuid'))?.toLowerCase(), uuid.toLowerCase())),
    ];
  } catch (error) {
    const problem = fileProblem('xml', file, error);
    return [
      problem.message.includes(file) ? problem : { ...problem, message: `${file}: ${problem.message}` },
    ];
  }
}

function same(file: string, what: string, found: string | undefined, expected: string): FileProblem[] {
  if (found === expected) return [];
  const message = `${file} is of another VM: its ${what} is ${JSON.stringify(found ?? '')}, the manifest's ${JSON.stringify(expected)}`;
  return [{ kind: 'xml', path: file, message }];
}
