/** What a session is of: a VM of libvirt, or image files. */
export type NamedBy = 'vm' | 'images';

/**
 * The option that gives a session's name, for commands that people are told to type. `cleanup` and `unlock` take both; who gave --name has
 * no VM of that name.
 */
export function givenName(name: string, namedBy: NamedBy | undefined): string {
  return namedBy === 'images' ? `--name=${name}` : `--vm=${name}`;
}
