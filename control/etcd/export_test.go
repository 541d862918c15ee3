package etcd

import clientv3 "go.etcd.io/etcd/client/v3"

// Through is the configuration of a source or a client that reaches its etcd through what connect makes, and not
// through its endpoints.
func (c Config) Through(connect func() *clientv3.Client) Config {
	c.connect = connect
	return c
}
