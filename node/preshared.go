package node

import (
	"fmt"

	"github.com/warren-net/warren/internal/key"
)

// presharedFiles are the files of preshared keys that were asked for since all peers were last planned, as they were
// read then, or when the first peer came that asked: all peers of a file have the same key. When one changes, all peers
// are planned anew.
type presharedFiles struct {
	read map[string]presharedFile
	last map[string]presharedFile // of the plan before
}

// A presharedFile is what is known of one.
type presharedFile struct {
	key key.Preshared // what it held when it could last be read; zero: it never could
	why error         // why it could not be read the last time
}

// again are the same files, to be read again. One that nobody asks for any more is forgotten.
func (f *presharedFiles) again() presharedFiles {
	return presharedFiles{read: map[string]presharedFile{}, last: f.read}
}

// of is the key in a file, with an error the one that was in it before; zero: none was.
func (f *presharedFiles) of(file string) (key.Preshared, error) {
	now, known := f.read[file]
	if !known {
		now = f.last[file].now(file)
		f.read[file] = now
	}
	if now.why != nil {
		return now.key, fmt.Errorf("presharedKeyFile: %w", now.why)
	}
	return now.key, nil
}

// now is what is known of the file when it is read again.
func (f presharedFile) now(file string) presharedFile {
	k, err := key.LoadPreshared(file)
	if err != nil {
		return presharedFile{f.key, err}
	}
	return presharedFile{key: k}
}

func (f presharedFile) equal(o presharedFile) bool {
	return f.key == o.key && (f.why == nil) == (o.why == nil) && (f.why == nil || f.why.Error() == o.why.Error())
}

// changed reports whether a file holds another key than when it was read last, or is no longer, or again, or for
// another reason not to be read: then there is something else to warn of.
func (f *presharedFiles) changed() bool {
	for file, before := range f.read {
		if !before.now(file).equal(before) {
			return true
		}
	}
	return false
}
