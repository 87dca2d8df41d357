"""How answers look: tables, ages and sizes, templates, Docker's shape of ``inspect``. Pure, except :mod:`plain`."""
