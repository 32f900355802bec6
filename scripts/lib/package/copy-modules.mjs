// copy-modules.mjs DESTINATION: copies the npm packages that chunkmount depends on, and of each what is needed then: code,
// libraries for this processor, and licences. Prints what is to be said of their licences.
import * as fs from 'node:fs';
import { createRequire } from 'node:module';
import * as path from 'node:path';
import { LICENCE, licenceOf, readPackage } from './licence.mjs';

const ROOT = path.resolve(import.meta.dirname, '../../..');
const CODE = /\.(js|cjs|mjs|json|node|so|wasm)$/;
/** Of other systems and programs. */
const NEEDLESS = /^(darwin-.*|win32-.*|electron\..*|test|tests|docs|examples?)$/;
const OTHERS_PLATFORM = new RegExp(`^linux-(?!${process.arch}$)`);
const OTHERS_PACKAGE = /-(darwin|linux-arm)$/;

const [, , destination] = process.argv;
if (destination === undefined) throw new Error('usage: copy-modules.mjs DESTINATION');

/** Directories of a package and all that it depends on, whether it needs it or can use it. */
function collect(directory, found) {
  const { dependencies = {}, optionalDependencies = {} } = readPackage(directory);
  for (const name of Object.keys({ ...optionalDependencies, ...dependencies })) {
    if (OTHERS_PACKAGE.test(name)) continue;
    const place = locate(name, directory);
    if (place === undefined) {
      if (name in optionalDependencies) continue;
      throw new Error(`${name} is not installed: scripts/lib/install npm`);
    }
    if (found.has(place)) continue;
    found.add(place);
    collect(place, found);
  }
  return found;
}

/** As Node finds it: in the nearest node_modules. */
function locate(name, from) {
  const places = createRequire(path.join(from, 'x.js')).resolve.paths(name) ?? [];
  return places
    .filter((place) => place.startsWith(ROOT))
    .map((place) => path.join(place, name))
    .find((place) => fs.existsSync(path.join(place, 'package.json')));
}

function copy(source, target) {
  const entries = fs.readdirSync(source, { withFileTypes: true });
  // What the compiler left on this machine: the package brings the same, compiled for all.
  const compiled = entries.some(({ name }) => name === 'prebuilds') ? 'build' : undefined;
  for (const entry of entries) {
    const { name } = entry;
    if (name === 'node_modules' || name === compiled) continue;
    if (NEEDLESS.test(name) || OTHERS_PLATFORM.test(name)) continue;
    const [from, to] = [path.join(source, name), path.join(target, name)];
    if (entry.isDirectory()) copy(from, to);
    else if (entry.isFile() && (CODE.test(name) || LICENCE.test(name))) {
      fs.mkdirSync(target, { recursive: true });
      fs.writeFileSync(to, fs.readFileSync(from), { mode: 0o644 });
    }
  }
}

for (const directory of [...collect(ROOT, new Set())].sort()) {
  const where = path.relative(path.join(ROOT, 'node_modules'), directory);
  copy(directory, path.join(destination, where));
  console.log(licenceOf(directory));
}
