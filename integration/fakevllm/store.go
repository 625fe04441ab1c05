package fakevllm

// store stores all embeddings of a modern encode request, or none.
func (c *Cluster) store(all []embedded) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range all {
		if err := c.checkName(e.item); err != nil {
			return err
		}
	}
	for _, e := range all {
		c.storeOne(e)
	}
	return nil
}

// checkName rejects a uuid that was used for other media: a reference to it would be
// ambiguous. The caller holds mu.
func (c *Cluster) checkName(i item) error {
	hash, known := c.encoded[i.referenceKey()]
	if i.uuid != nil && known && hash != i.hash {
		return engineFailure("uuid %s stands for other media already", i.uuid)
	}
	return nil
}

// storeOne makes the embedding available to all engines, to the holder of the handle, or to
// the consumer of the transfers. The caller holds mu.
func (c *Cluster) storeOne(e embedded) {
	hash := e.item.hash
	stored := c.embeddingOf(hash)
	stored.item = e.item
	stored.item.value = nil // so that it does not keep megabytes of media
	stored.names[e.name] = true
	if len(e.entry.Metadata) > 0 {
		stored.metadata = flattened(e.entry.Metadata)
	}
	if e.item.uuid != nil {
		c.encoded[e.item.referenceKey()] = hash
	}
	if e.entry.handle != nil {
		c.handles[e.entry.Handle] = &offer{hash, e.name, e.entry.opaque(), len(e.ids) > 0}
	}
	for _, id := range e.ids {
		d := c.deliveries[id]
		d.hash, d.name, d.handle = hash, e.name, e.entry.handle != nil
		stored.delivered = true
	}
	if e.entry.handle == nil && len(e.ids) == 0 {
		stored.shared = true
	}
}
