"""What tests share: labs, stages that behave as asked, tiny models, Azure and the hub on this machine."""
