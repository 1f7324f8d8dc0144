"""The verbalizer on vLLM, by its public API: in this machine's engine, or on a server.

Two sides, which meet in the rows of ``prompt_embeds`` (`rows`):

* the client: `engine` (the `TextEngine`), with `local` (vLLM's ``LLM``) or `served` (a server);
* what runs in vLLM's own processes, which load it by the entry point ``vllm.general_plugins``:
  `plugin`, `model` (the model class that writes the vector), `receipts`, `draws`, `server`.
"""
