// Package install puts the CNI plugin and a configuration list where a container runtime looks for them, and takes
// them away again.
//
// A runtime may read and execute at any moment, and the installer may be killed or the machine lose power at any
// moment. So each file is written under a temporary name that no runtime looks at, synced and renamed; the program
// comes before the list that names it, and goes after it. One installer works at a time: it locks the directories.
//
// What differs from what would be written is never replaced, and what is not Warren's never removed, unless the caller
// forces it.
package install
