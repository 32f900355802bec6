import { usage } from '../errors.js';

/** Names become directory names, lock files and parts of libvirt snapshot names. */
const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.+@:-]*$/;
const MAX_NAME_LENGTH = 128;

/** A disk target as libvirt and we name them: letters and digits. */
const TARGET = /^[a-z][a-z0-9]{0,15}$/;

export function isName(name: string): boolean {
  return NAME.test(name) && name.length <= MAX_NAME_LENGTH;
}

/** Throws a usage error unless `name` can safely be a directory's name on every system that a backup may go to. */
export function checkName(name: string): string {
  if (isName(name)) return name;
  const why =
    name === ''
      ? 'it is empty'
      : name.length > MAX_NAME_LENGTH
        ? `it is longer than ${MAX_NAME_LENGTH} characters`
        : 'only letters, digits and _ . + @ : - may be in it, and it may not begin with . + @ : or -';
  throw usage(`${JSON.stringify(name)} cannot be the name of a tree: ${why}`, {
    hint: 'a VM can be renamed while it is off: virsh domrename; an image is named by --name',
  });
}

export function isTarget(target: string): boolean {
  return TARGET.test(target);
}
