/**
 * libvirt's helper makes the AppArmor profile of each VM, and reads the VM's images to find their backing files. What its own profile
 * does not let it read is missing in the VM's, and QEMU is then refused it: with an overlay, the base below it.
 */
export const HELPER_PROFILE = '/etc/apparmor.d/usr.lib.libvirt.virt-aa-helper';
/** Included by it, for the administrator's additions. */
export const LOCAL_PROFILE = '/etc/apparmor.d/local/usr.lib.libvirt.virt-aa-helper';

/** A rule of apparmor.d(5) for files: path and permissions, perhaps to deny. */
const RULE = /^\s*(?:audit\s+)?(deny\s+)?((?:\/|@\{HOME\})\S*)\s+([a-zA-Z]+)\s*,/;

/** AppArmor's globs as a regular expression; see apparmor.d(5), "Globbing". */
function globToRegExp(glob: string): RegExp {
  let depth = 0;
  const source = glob.replace(/@\{HOME\}|\*\*|\[[^\]]*\]|./gs, (token) => {
    if (token === '@{HOME}') return '(?:/root|/home/[^/]+)';
    if (token === '**') return '.*';
    if (token === '*') return '[^/]*';
    if (token === '?') return '[^/]';
    if (token.length > 1) return token;
    if (token === '{') {
      depth++;
      return '(?:';
    }
    if (token === '}' && depth > 0) {
      depth--;
      return ')';
    }
    if (token === ',' && depth > 0) return '|';
    return token.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  });
  return new RegExp(`^${source}$`, 's');
}

function matches(glob: string, file: string): boolean {
  try {
    return globToRegExp(glob).test(file);
  } catch {
    // A pattern that we do not understand allows nothing as far as we can tell.
    return false;
  }
}

/** Whether the rules of a profile (its text, with what it includes) let a program read `file`. */
export function mayRead(profile: string, file: string): boolean {
  const rules = profile.split('\n').flatMap((line) => {
    const [, deny, glob, permissions = ''] = RULE.exec(line) ?? [];
    return glob !== undefined && permissions.includes('r') && matches(glob, file) ? [deny === undefined] : [];
  });
  return rules.length > 0 && rules.every((allows) => allows);
}
