"""What foretune must stand: broken, odd and hostile input of every kind, each attempt held against one contract."""
