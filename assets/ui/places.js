// Places for streams. A browser opens six connections to a server over HTTP/1.1, for all of its pages together, and a
// stream holds one of them as long as it runs. So the pages of a server share a few places, as locks that they all see,
// and the other connections stay free. Browsers have these locks where a page came over TLS or from this machine.

const PLACES = ["attune-live-1", "attune-live-2", "attune-live-3", "attune-live-4"];

// Takes a place. Returns the function that gives it back, or null if none is free, or none can be shared. A page that
// goes away gives its place back by itself.
export async function takePlace() {
  if (!navigator.locks) return null;
  for (const name of PLACES) {
    const leave = await new Promise((resolve) => {
      const ask = navigator.locks.request(name, { ifAvailable: true }, (lock) => {
        if (lock) return new Promise(resolve);
        resolve(null);
      });
      ask.catch(() => resolve(null));
    });
    if (leave) return leave;
  }
  return null;
}
